"""Creates keys in the database of the given URL with litestar-api-auth. Prints their secrets by id, as JSON."""

import asyncio
import json
import sys
from datetime import datetime, timedelta, timezone

from litestar_api_auth.backends.base import APIKeyInfo
from litestar_api_auth.backends.sqlalchemy import SQLAlchemyBackend, SQLAlchemyConfig
from litestar_api_auth.service import generate_api_key, hash_api_key
from sqlalchemy.ext.asyncio import create_async_engine

# More keys than one query of the import reads.
MANY = 600


async def main(url: str) -> None:
    backend = SQLAlchemyBackend(config=SQLAlchemyConfig(engine=create_async_engine(url)))
    await backend.startup()
    secrets = {}

    async def make(key_id: str, **attributes) -> None:
        secrets[key_id], key_hash = generate_api_key()
        attributes = {"name": f"key {key_id}", "scopes": [], **attributes}
        await backend.create(key_hash, APIKeyInfo(key_id=key_id, key_hash=key_hash, **attributes))

    now = datetime.now(timezone.utc)
    await make("active", scopes=["users:read", "users:write"])
    await make(
        "full",
        scopes=["read"],
        created_at=datetime(2024, 2, 29, 23, 59, 58, 123456, timezone.utc),
        expires_at=datetime(2100, 1, 1, tzinfo=timezone.utc),
        last_used_at=datetime(2025, 3, 1, 12, 0, 0, tzinfo=timezone(timedelta(hours=2))),
        metadata={"team": "blue", "quota": 7, "tags": ["a", "b"], "nothing": None, "🔑": "ключ"},
    )
    await make("expired", expires_at=now - timedelta(days=1))
    await make("revoked", scopes=["read"])
    assert await backend.revoke(hash_api_key(secrets["revoked"]))
    await make("bad-scope", scopes=["two words"])
    await make("long-name", name="n" * 200)
    await make("taken-metadata", metadata={"litestar_key_id": "x"})
    for number in range(MANY):
        await make(f"many-{number}")
    await backend.close()
    print(json.dumps(secrets))


asyncio.run(main(sys.argv[1]))
