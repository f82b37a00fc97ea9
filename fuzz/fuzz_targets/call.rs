#![no_main]

thread_local! {
    static SERVER: keyvouch::fuzzing::Server = keyvouch::fuzzing::Server::new();
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| SERVER.with(|server| server.call(bytes)));
