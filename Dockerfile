# syntax=docker/dockerfile:1

# The digests of the base images, as `@sha256:…`. `scripts/base-images --write` looks them up and writes them here. With a digest,
# a build takes the same image every time; without one, it takes the current image of the tag.
ARG BUILD_DIGEST=
ARG RUNTIME_DIGEST=

FROM rust:1.95.0-slim-bookworm${BUILD_DIGEST} AS build
# The program then contains no paths of the machine that built it.
ENV RUSTFLAGS="--remap-path-prefix=/usr/local/cargo/registry/src=registry --remap-path-prefix=/src=keyvouch"
WORKDIR /src
# Dependencies first, with sources that are empty: they are built again only when the manifests change.
COPY Cargo.toml Cargo.lock ./
COPY migration/Cargo.toml migration/
RUN mkdir -p src benches tests/held tests/it migration/src \
    && echo 'fn main() {}' | tee build.rs src/main.rs benches/million_keys.rs benches/validate_load.rs benches/worst_requests.rs \
        tests/held/main.rs tests/it/main.rs > /dev/null \
    && touch src/lib.rs migration/src/lib.rs \
    && cargo build --release --locked --bin keyvouch
COPY build.rs ./
COPY proto proto
COPY third_party third_party
COPY migration migration
COPY src src
# The empty ones were built just now, and may be newer than the true ones.
RUN find build.rs src migration/src -name '*.rs' -exec touch {} + \
    && cargo build --release --locked --bin keyvouch \
    && mkdir -p /image/var/lib/keyvouch /image/run/keyvouch \
    && cp target/release/keyvouch /image/keyvouch

# libc, libgcc, roots of certificates, the user 65532, and no shell.
FROM gcr.io/distroless/cc-debian12:nonroot${RUNTIME_DIGEST}
ARG VERSION=unknown
ARG REVISION=unknown
ARG CREATED=unknown
LABEL org.opencontainers.image.title="Keyvouch" \
      org.opencontainers.image.description="A gRPC service that issues and validates API keys for other services" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.created="$CREATED"
COPY --from=build /image/keyvouch /usr/local/bin/keyvouch
COPY --from=build --chown=65532:65532 /image/var/lib/keyvouch /var/lib/keyvouch
COPY --from=build --chown=65532:65532 /image/run/keyvouch /run/keyvouch
COPY LICENSE /licenses/LICENSE
USER 65532:65532
WORKDIR /var/lib/keyvouch
VOLUME /var/lib/keyvouch
EXPOSE 50051 50052 9464
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["/usr/local/bin/keyvouch", "healthcheck"]
ENTRYPOINT ["/usr/local/bin/keyvouch"]
CMD ["serve"]
