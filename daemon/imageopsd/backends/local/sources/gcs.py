"""Google Cloud Storage through fsspec's gcsfs: the one module that knows the library, what it says and what it would do
by itself.

Everything it could take from the environment is given to it here, so that it asks nothing there: the token, the
endpoint, the project, fsspec's own configuration. Why not another way: `daemon/decisions/0010-object-stores.md`."""

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import anyio
import msgspec

from imageopsd.backends.local.options import ObjectBucket, Options
from imageopsd.backends.local.pipe import in_thread
from imageopsd.backends.local.sources.objects import Found, Store, StoreFailure
from imageopsd.keys.files import read
from imageopsd.model.sources import CloudStorageObject

T = TypeVar("T")

SCOPES = ("https://www.googleapis.com/auth/devstorage.read_only",)
CLOSING = 1.0
"""Seconds for the last connections to be closed."""

_NO_NAMES = {"", ".", ".."}
"""No object is called so; in a URL they would be another place."""


class GoogleStore:
    """gcsfs runs on fsspec's event loop, in a thread of its own, because it fetches tokens without letting go of the
    loop. What is asked of it is asked there; who is cancelled here waits for nothing."""

    def __init__(self, filesystem: Any) -> None:
        self._filesystem = filesystem

    async def look(self, named: CloudStorageObject) -> Found:
        if named.name in _NO_NAMES or named.name.endswith("/"):
            raise StoreFailure(HTTPStatus.NOT_FOUND, "it is no object")
        info = await self._asked(self._filesystem._info(_path(named)))
        if info["type"] != "file":
            raise StoreFailure(HTTPStatus.NOT_FOUND, "it is no object")
        if not info.get("generation"):  # an emulator's omission: nobody could tell two versions from each other
            raise StoreFailure(None, "its store names no generation of it")
        return Found(info["size"], str(info["generation"]), info.get("contentType"))

    async def read(self, named: CloudStorageObject, generation: str, start: int, end: int) -> bytes:
        reading = self._filesystem._cat_file(_path(named), start=start, end=end, generation=generation)
        content: bytes = await self._asked(reading)
        return content

    async def close(self) -> None:
        session = self._filesystem.session
        if session is None:
            return
        with suppress(Exception), anyio.move_on_after(CLOSING, shield=True):
            await self._there(session.close())

    async def _asked(self, asking: Coroutine[Any, Any, T]) -> T:
        try:
            return await self._there(asking)
        except Exception as error:  # whatever it is, its text has the object's URL in it, or the store's words
            raise _failure(error) from None

    async def _there(self, asking: Coroutine[Any, Any, T]) -> T:
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(asking, self._filesystem.loop))


@asynccontextmanager
async def connected(bucket: ObjectBucket, options: Options) -> AsyncIterator[Store]:
    """Raises StoreFailure if the bucket's credentials cannot be used."""
    timeout = aiohttp.ClientTimeout(total=None, connect=options.connect_timeout, sock_read=options.stall_timeout)
    store = GoogleStore(await in_thread("connect", lambda: _filesystem(bucket, timeout)))
    try:
        yield store
    finally:
        await store.close()


def _filesystem(bucket: ObjectBucket, timeout: aiohttp.ClientTimeout) -> Any:
    """In a thread: loads the library and the credentials."""
    _hush()
    import fsspec.config
    from gcsfs.core import GCSFileSystem  # not its subclass for zonal buckets, which opens gRPC channels by itself

    _hush()  # again, for GCSFS_DEBUG makes it talk as it is loaded
    for name in GCSFileSystem.protocol:
        fsspec.config.conf.pop(name, None)  # what it read of FSSPEC_… and ~/.config/fsspec
    return GCSFileSystem(
        project="",
        access="read_only",
        token=_token(bucket),
        requests_timeout=timeout,
        endpoint_url=bucket.endpoint,
        skip_instance_cache=True,
        use_listings_cache=False,
    )


def _hush() -> None:
    """They log what they ask for and what they are answered; what is worth telling, we tell."""
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL + 1)
    logging.getLogger("google").setLevel(logging.WARNING)


def _token(bucket: ObjectBucket) -> Any:
    from google.auth import compute_engine
    from google.oauth2.credentials import Credentials as User
    from google.oauth2.service_account import Credentials as ServiceAccount

    if bucket.metadata_server:
        return compute_engine.Credentials(scopes=SCOPES)
    if not bucket.credentials_file:
        return "anon"
    try:
        facts = msgspec.json.decode(read(Path(bucket.credentials_file)), type=dict[str, Any])
        # the other kinds name commands to run and servers to ask
        kinds: dict[str, Any] = {
            "service_account": ServiceAccount.from_service_account_info,
            "authorized_user": User.from_authorized_user_info,
        }
        return kinds[facts["type"]](facts, scopes=SCOPES)
    except PermissionError:
        reason = "the credentials of its bucket cannot be read, or can be by everybody"
    except OSError as error:
        reason = f"the credentials of its bucket cannot be read ({type(error).__name__})"
    except Exception:  # their texts quote the file
        reason = "the credentials of its bucket are no service account's and no user's"
    raise StoreFailure(None, reason)


def _path(named: CloudStorageObject) -> str:
    return f"{named.bucket}/{named.name}"


def _failure(error: Exception) -> StoreFailure:
    return StoreFailure(_status(error), f"its store failed ({type(error).__name__})")


def _status(error: Exception) -> int | None:
    """What the store answered: gcsfs makes exceptions of several kinds of it (`gcsfs.retry.validate_response`)."""
    from google.auth.exceptions import RefreshError

    match error:
        case FileNotFoundError():
            return HTTPStatus.NOT_FOUND
        case FileExistsError():
            return HTTPStatus.PRECONDITION_FAILED
        case OSError() if str(error).startswith("Forbidden: "):
            return HTTPStatus.FORBIDDEN
        case ValueError() if str(error).startswith(("Bad Request: ", "Bucket is requester pays")):
            return HTTPStatus.BAD_REQUEST
    if isinstance(error.__cause__, RefreshError) and error.__cause__.retryable:
        return None
    code = str(getattr(error, "code", None))
    return int(code) if code.isdecimal() else None
