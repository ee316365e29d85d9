"""``s3://bucket/prefix``: the S3 protocol through s3fs.

Requests go through s3fs's client, one attempt each: how often and when is decided by `objects.Retry`, not by
three layers at once. Owns what S3's answers mean: 412 is "there is one already", 409, 429, 5xx and broken
connections may pass, 404 of an object is "not there", and everything else is told with its cause. s3fs and
what it needs are loaded by the first `S3Objects`.
"""

from __future__ import annotations

import builtins
import functools
import importlib
import os
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from .. import transfers
from ..errors import CheckpointStoreError, UnsupportedStoreError
from .objects import Bytes, Entry, TransientStoreError, Upload

if TYPE_CHECKING:
    from concurrent.futures import Future

T = TypeVar("T")
Again = Callable[[Callable[[], Any]], Any]
PART_BYTES = 16 << 20
_MOST_PARTS = 9_000  # S3 takes 10,000
_PARTS_AT_ONCE = 4
_DELETED_AT_ONCE = 1_000
CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 15.0
_REQUEST_TIMEOUT_S = 120.0

_TRANSIENT_STATUS = frozenset({408, 409, 425, 429})
_TRANSIENT_CODES = frozenset(
    {"SlowDown", "Throttling", "ThrottlingException", "RequestTimeout", "InternalError", "OperationAborted"}
)
_clients: dict[tuple[object, ...], Any] = {}
_clients_lock = threading.Lock()


@functools.cache
def _transient() -> tuple[type[BaseException], ...]:
    """Return the errors of connections; what else s3fs raises has an answer of the service in it."""
    exceptions = importlib.import_module("botocore.exceptions")
    parsers = importlib.import_module("botocore.parsers")
    asyncio = importlib.import_module("asyncio")
    aiohttp = importlib.import_module("aiohttp")
    return (
        aiohttp.ClientError,
        asyncio.TimeoutError,
        TimeoutError,
        ConnectionError,
        EOFError,
        exceptions.ConnectionError,
        exceptions.HTTPClientError,
        exceptions.IncompleteReadError,
        parsers.ResponseParserError,
    )


def close_clients() -> None:
    """Close this process's connections; the next request makes new ones."""
    with _clients_lock:
        clients = [client for (pid, _), client in _clients.items() if pid == os.getpid()]
        _clients.clear()
    sync = importlib.import_module("fsspec.asyn").sync
    for client in clients:
        if client._s3 is not None:
            sync(client.loop, client._s3.close)


def _client(options: tuple[tuple[str, str], ...]) -> Any:
    """Return this process's client for these options: making one reads much JSON."""
    with _clients_lock:
        found = _clients.get((os.getpid(), options))
        if found is None:
            found = _clients[os.getpid(), options] = _new_client(dict(options))
        return found


def _new_client(options: dict[str, str]) -> Any:
    s3fs = importlib.import_module("s3fs")
    config = {
        "retries": {"total_max_attempts": 1, "mode": "standard"},
        "connect_timeout": CONNECT_TIMEOUT_S,
        "read_timeout": READ_TIMEOUT_S,
    }
    made = s3fs.S3FileSystem(config_kwargs=config, skip_instance_cache=True, **client_arguments(options))
    made.retries = 1
    return made


def client_arguments(options: Mapping[str, str]) -> dict[str, Any]:
    """Return what s3fs is given for the query of a URL."""
    arguments: dict[str, Any] = {"use_listings_cache": False}
    if "endpoint_url" in options:
        arguments["endpoint_url"] = options["endpoint_url"]
    if "region" in options:
        arguments["client_kwargs"] = {"region_name": options["region"]}
    if "profile" in options:
        arguments["profile"] = options["profile"]
    return arguments


class S3Objects:
    """See `objects.Medium`.

    Parameters
    ----------
    url : str
        As `resolve_url` returns it.
    bucket, prefix : str
        The prefix without slashes at its ends; may be empty.
    options : dict
        ``endpoint_url``, ``region``, ``profile``; what is not given is found as AWS tools find it.
    """

    survives = frozenset({"process", "power", "node", "head"})
    limit_bytes: int | None = None
    inline_bytes = 256 << 10

    def __init__(self, url: str, bucket: str, prefix: str, options: dict[str, str]) -> None:
        try:
            self._sync = importlib.import_module("fsspec.asyn").sync
            importlib.import_module("s3fs")
        except ImportError as error:
            raise UnsupportedStoreError(
                f"store {url!r} needs s3fs, which is not installed here ({error}): pip install 'ftray[s3]'"
            ) from error
        self.url = url
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._options = tuple(sorted(options.items()))

    # -- requests ----------------------------------------------------------------------------------

    def _ask(self, method: str, name: str, **arguments: Any) -> dict[str, Any]:
        """Make one request about the object `name` (or about what is below it)."""

        async def call(client: Any) -> Any:
            return await client._call_s3(method, Bucket=self._bucket, **arguments)

        answer: dict[str, Any] = self._run(call, method, name)
        return answer

    def _run(self, request: Callable[[Any], Coroutine[Any, Any, T]], method: str, name: str) -> T:
        try:
            client = _client(self._options)
            return self._sync(client.loop, request, client, timeout=_REQUEST_TIMEOUT_S)  # type: ignore[no-any-return]
        except Exception as error:
            self._translate(error, method, name)

    def _translate(self, error: Exception, method: str, name: str) -> NoReturn:
        cause = next((e for e in (error, error.__cause__) if e and getattr(e, "response", None)), error)
        response: dict[str, Any] = getattr(cause, "response", None) or {}
        code = str(response.get("Error", {}).get("Code", ""))
        status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        what = f"{method} of s3://{self._bucket}/{self._prefix}{name}: {type(cause).__name__}: {cause}"
        if status == 404 and code != "NoSuchBucket":
            raise FileNotFoundError(
                2, code or "not found", f"s3://{self._bucket}/{self._prefix}{name}"
            ) from error
        if status == 412:
            raise FileExistsError(17, "there is one already", name) from error
        if (status >= 500 and status != 501) or status in _TRANSIENT_STATUS or code in _TRANSIENT_CODES:
            raise TransientStoreError(what) from error
        if not response and isinstance(cause, _transient()):
            raise TransientStoreError(what) from error
        raise CheckpointStoreError(what + _advice(cause, status, code)) from error

    # -- objects -----------------------------------------------------------------------------------

    def create(self, name: str, data: bytes) -> bool:
        """Create an object by ``If-None-Match: *``."""
        try:
            self._ask("put_object", name, Key=self._prefix + name, Body=data, IfNoneMatch="*")
        except FileExistsError:
            return False
        return True

    def write(self, name: str, data: bytes) -> None:
        """Create or replace an object."""
        self._ask("put_object", name, Key=self._prefix + name, Body=data)

    def read(self, name: str, start: int = 0, end: int | None = None) -> bytes:
        """Return a range of an object."""
        if end is not None and end <= start:
            return b""
        limits = (
            {"Range": f"bytes={start}-{'' if end is None else end - 1}"} if start or end is not None else {}
        )

        async def call(client: Any) -> bytes:
            answer = await client._call_s3(
                "get_object", Bucket=self._bucket, Key=self._prefix + name, **limits
            )
            async with answer["Body"] as body:
                data: bytes = await body.read()
            if len(data) != answer["ContentLength"]:
                raise EOFError(f"{len(data)} of {answer['ContentLength']} bytes came")
            return data

        return self._run(call, "get_object", name)

    def size(self, name: str) -> int | None:
        """Return the size of an object."""
        try:
            return int(self._ask("head_object", name, Key=self._prefix + name)["ContentLength"])
        except FileNotFoundError:
            return None

    def delete(self, names: Sequence[str]) -> None:
        """Delete objects."""
        if len(names) == 1:
            self._ask("delete_object", names[0], Key=self._prefix + names[0])
            return
        for start in range(0, len(names), _DELETED_AT_ONCE):
            chunk = [{"Key": self._prefix + n} for n in names[start : start + _DELETED_AT_ONCE]]
            answer = self._ask("delete_objects", names[start], Delete={"Objects": chunk, "Quiet": True})
            for failed in answer.get("Errors", []):
                what = f"delete of {failed.get('Key')}: {failed.get('Code')}: {failed.get('Message')}"
                kind = TransientStoreError if failed.get("Code") in _TRANSIENT_CODES else CheckpointStoreError
                raise kind(what)

    # -- listing -----------------------------------------------------------------------------------

    def _pages(self, prefix: str, delimiter: str) -> tuple[list[Entry], list[str]]:
        start = self._prefix + prefix
        entries: list[Entry] = []
        below: list[str] = []
        more: dict[str, str] = {"Delimiter": delimiter} if delimiter else {}
        while True:
            answer = self._ask("list_objects_v2", prefix, Prefix=start, **more)
            entries += [
                Entry(e["Key"][len(self._prefix) :], int(e["Size"])) for e in answer.get("Contents", [])
            ]
            below += [p["Prefix"][len(self._prefix) :] for p in answer.get("CommonPrefixes", [])]
            if not answer.get("IsTruncated"):
                return entries, below
            more["ContinuationToken"] = answer["NextContinuationToken"]

    def list(self, directory: str, stem: str = "") -> list[Entry]:
        """Return the objects directly in a directory."""
        entries, _ = self._pages(f"{directory}/{stem}", "/")
        return sorted(Entry(name[len(directory) + 1 :], size) for name, size in entries)

    def directories(self) -> builtins.list[str]:
        """Return the first level of directories."""
        return [name.rstrip("/") for name in self._pages("", "/")[1]]

    def walk(self, directory: str) -> builtins.list[Entry]:
        """Return all objects below a directory."""
        return self._pages(f"{directory}/", "")[0]

    # -- large objects -----------------------------------------------------------------------------

    def upload(self, name: str, parts: Sequence[Bytes], retry: Again) -> None:
        """Write a large object: in parts, several at once, given up as a whole if one fails for good."""
        length = sum(len(part) for part in parts)
        if length <= PART_BYTES:
            data = b"".join(parts)
            retry(lambda: self.write(name, data))
            transfers.moved(length)
            return
        key = self._prefix + name
        begun = retry(lambda: self._ask("create_multipart_upload", name, Key=key))
        upload = Upload(name, begun["UploadId"])
        try:
            done = self._send_parts(upload, parts, max(PART_BYTES, -(-length // _MOST_PARTS)), retry)
            self._complete(upload, done, length, retry)
        except Exception:
            self._try_to_abort(upload)
            raise

    def _send_parts(
        self, upload: Upload, parts: Sequence[Bytes], size: int, retry: Again
    ) -> builtins.list[dict[str, Any]]:
        def send(number: int, data: bytes) -> dict[str, Any]:
            answer = retry(
                lambda: self._ask(
                    "upload_part",
                    upload.name,
                    Key=self._prefix + upload.name,
                    UploadId=upload.id,
                    PartNumber=number,
                    Body=data,
                )
            )
            return {"PartNumber": number, "ETag": answer["ETag"]}

        from concurrent.futures import ThreadPoolExecutor

        done: list[dict[str, Any]] = []
        under_way: deque[Future[dict[str, Any]]] = deque()
        with ThreadPoolExecutor(_PARTS_AT_ONCE, "checkpoint-upload") as pool:
            for number, data in enumerate(_pieces(parts, size), 1):
                if len(under_way) == _PARTS_AT_ONCE:
                    done.append(under_way.popleft().result())
                    transfers.moved(size)
                under_way.append(pool.submit(send, number, data))
            for future in under_way:
                done.append(future.result())
                transfers.moved(size)
        return done

    def _complete(
        self,
        upload: Upload,
        done: builtins.list[dict[str, Any]],
        length: int,
        retry: Again,
    ) -> None:
        def complete() -> None:
            self._ask(
                "complete_multipart_upload",
                upload.name,
                Key=self._prefix + upload.name,
                UploadId=upload.id,
                MultipartUpload={"Parts": done},
            )

        try:
            retry(complete)
        except FileNotFoundError:
            # Of a completion whose answer was lost the second one finds no upload, but the object is there.
            if retry(lambda: self.size(upload.name)) != length:
                raise CheckpointStoreError(
                    f"the upload of s3://{self._bucket}/{self._prefix}{upload.name} was aborted by somebody"
                ) from None

    def _try_to_abort(self, upload: Upload) -> None:
        try:
            self.abort(upload)
        except CheckpointStoreError:  # the error that led here is the one to report; the next epoch sweeps
            pass

    def uploads(self, directory: str) -> builtins.list[Upload]:
        """Return the unfinished uploads below a directory."""
        found: list[Upload] = []
        more: dict[str, str] = {}
        while True:
            answer = self._ask(
                "list_multipart_uploads", directory, Prefix=f"{self._prefix}{directory}/", **more
            )
            found += [Upload(u["Key"][len(self._prefix) :], u["UploadId"]) for u in answer.get("Uploads", [])]
            if not answer.get("IsTruncated"):
                return found
            more = {"KeyMarker": answer["NextKeyMarker"], "UploadIdMarker": answer["NextUploadIdMarker"]}

    def abort(self, upload: Upload) -> None:
        """Give up an upload."""
        try:
            self._ask(
                "abort_multipart_upload", upload.name, Key=self._prefix + upload.name, UploadId=upload.id
            )
        except FileNotFoundError:
            pass


def _pieces(parts: Sequence[Bytes], size: int) -> Iterator[bytes]:
    """Yield the bytes of `parts` in pieces of `size`, copying each byte once and one piece at a time."""
    gathered = bytearray()
    for part in parts:
        view = memoryview(part).cast("B")
        while len(view):
            taken = view[: size - len(gathered)]
            gathered += taken
            view = view[len(taken) :]
            if len(gathered) == size:
                yield bytes(gathered)
                gathered = bytearray()
    if gathered:
        yield bytes(gathered)


def _advice(cause: BaseException, status: int, code: str) -> str:
    if type(cause).__name__ in ("NoCredentialsError", "PartialCredentialsError"):
        return ". Give credentials as AWS tools take them: environment, ~/.aws, an instance role or ?profile="
    if code == "NoSuchBucket":
        return ". Create the bucket first; ftray does not"
    if status == 403:
        return (
            ". Allowed must be: s3:GetObject, s3:PutObject, s3:DeleteObject, s3:AbortMultipartUpload on the "
            "prefix, s3:ListBucket and s3:ListBucketMultipartUploads on the bucket"
        )
    return ""
