"""Snapshots of directories for runtime environments.

Owns: ``<session>/envs/<hash>``, read-only copies that are named by what is in them, and what of a directory
belongs to one (``excludes``, ``.gitignore``, the size limit).  Invariants: the name is the hash of the very
bytes that were copied; a snapshot appears under its name complete or not at all; what is there never
changes, until it goes with the session.  Leaves to others: what an environment is (``_runtime_env``), using
snapshots (``_node/environments``).
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat

from ftray._runtime_env import SNAPSHOT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import IO

    Rule = tuple[str, re.Pattern[str], bool, bool]  # base, pattern, keep, directories only

DIRECTORY = "envs"
MAX_BYTES = 500 << 20  # Ray's limit for a package
_LIMIT_VARIABLE = "FTRAY_RUNTIME_ENV_MAX_BYTES"
_CHUNK_BYTES = 1 << 20
_NEVER = {".git", "__pycache__"}

_made: dict[tuple[object, ...], tuple[object, str]] = {}  # by place: the stamp of its files, and its snapshot


def of_working_dir(session_dir: str, path: str, excludes: Sequence[str]) -> str:
    """Return the snapshot of a directory's, or a zip file's, content."""
    if path.startswith(SNAPSHOT):
        return path
    if not os.path.isdir(path) and not path.endswith(".zip"):
        _missing(path, "working_dir", "a directory or a .zip file")
    return _snapshot(session_dir, path, excludes, "")


def of_module(session_dir: str, path: str, excludes: Sequence[str]) -> str:
    """Return a snapshot that has a module: a directory or a file under its own name, or a zip's content."""
    if path.startswith(SNAPSHOT):
        return path
    if path.endswith(".whl"):
        from ftray.exceptions import NotSupportedError

        raise NotSupportedError(f"runtime_env['py_modules']: wheels ({path}) are not supported")
    if not os.path.isdir(path) and not path.endswith((".py", ".zip")):
        _missing(path, "py_modules", "directories, .py and .zip files")
    return _snapshot(session_dir, path, excludes, "" if path.endswith(".zip") else os.path.basename(path))


def _missing(path: str, field: str, allowed: str) -> None:
    what = "is neither" if os.path.exists(path) else "does not exist"
    raise ValueError(f"runtime_env[{field!r}]: {path} {what}; allowed: {allowed}")


def _limit_bytes() -> int:
    text = os.environ.get(_LIMIT_VARIABLE)
    try:
        limit = MAX_BYTES if text is None else int(text)
    except ValueError:
        limit = 0
    if limit <= 0:
        raise ValueError(f"the environment variable {_LIMIT_VARIABLE}={text!r} is not valid: it must be > 0")
    return limit


# --- what belongs to it ---------------------------------------------------------------------------


def parse_rules(lines: Sequence[str], base: str = "") -> list[Rule]:
    """Read patterns of ``excludes`` or of a ``.gitignore`` that stands in the directory ``base``."""
    rules = []
    for raw in lines:
        line = raw.rstrip("\r\n")
        if not line.endswith("\\ "):
            line = line.rstrip(" ")
        if not line or line.startswith("#"):
            continue
        keep = line.startswith("!")
        line = line[1:] if keep or line.startswith(("\\#", "\\!")) else line
        only_directories = line.endswith("/")
        line = line.rstrip("/")
        if line:
            rules.append((base, re.compile(_regex(line)), keep, only_directories))
    return rules


def _regex(pattern: str) -> str:
    """Return a gitignore pattern as a regular expression over paths relative to its base."""
    anchored = "/" in pattern
    pattern = pattern.lstrip("/")
    out = "" if anchored else "(?:.*/)?"
    at = 0
    while at < len(pattern):
        if pattern.startswith("**/", at):
            out, at = f"{out}(?:.*/)?", at + 3
        elif pattern.startswith("**", at):
            out, at = f"{out}.*", at + 2
        elif pattern[at] == "*":
            out, at = f"{out}[^/]*", at + 1
        elif pattern[at] == "?":
            out, at = f"{out}[^/]", at + 1
        elif pattern[at] == "[" and (end := pattern.find("]", at + 2)) > 0:
            inner = pattern[at + 1 : end].replace("\\", "\\\\")
            out, at = f"{out}[{'^' + inner[1:] if inner[0] in '!^' else inner}]", end + 1
        elif pattern[at] == "\\" and at + 1 < len(pattern):
            out, at = out + re.escape(pattern[at + 1]), at + 2
        else:
            out, at = out + re.escape(pattern[at]), at + 1
    return out + r"\Z"


def excluded(rules: Sequence[Rule], path: str, is_directory: bool) -> bool:
    """Whether the last rule that matches ``path`` (relative, with ``/``) leaves it out."""
    verdict = False
    for base, pattern, keep, only_directories in rules:
        if only_directories and not is_directory:
            continue
        if base and not path.startswith(base + "/"):
            continue
        if pattern.match(path[len(base) + 1 :] if base else path):
            verdict = not keep
    return verdict


def files_of(root: str, excludes: Sequence[str]) -> Iterator[tuple[str, str, os.stat_result]]:
    """Yield (relative path, path, status) of every file that belongs to a snapshot, in a fixed order.

    Links are followed; pipes, sockets and devices are left out.
    """
    explicit = parse_rules(excludes)
    yield from _walk(root, "", [], explicit, (os.path.realpath(root),))


def _walk(
    root: str, relative: str, ignored: list[Rule], explicit: list[Rule], above: tuple[str, ...]
) -> Iterator[tuple[str, str, os.stat_result]]:
    directory = os.path.join(root, relative) if relative else root
    try:
        with open(os.path.join(directory, ".gitignore"), encoding="utf-8", errors="replace") as file:
            ignored = ignored + parse_rules(file.readlines(), relative)
    except (FileNotFoundError, IsADirectoryError):
        pass  # most directories have none
    for name in sorted(os.listdir(directory)):
        inner = f"{relative}/{name}" if relative else name
        path = os.path.join(directory, name)
        try:
            status = os.stat(path)
        except FileNotFoundError:
            continue  # a link to nowhere, or gone meanwhile
        is_directory = stat.S_ISDIR(status.st_mode)
        # What `excludes` says cannot be undone by a .gitignore.
        if (
            name in _NEVER
            or excluded(explicit, inner, is_directory)
            or excluded(ignored, inner, is_directory)
        ):
            continue
        if is_directory:
            real = os.path.realpath(path)
            if real in above:
                raise ValueError(
                    f"runtime_env: the link {path} leads to a directory around it; name it in 'excludes'"
                )
            yield from _walk(root, inner, ignored, explicit, (*above, real))
        elif stat.S_ISREG(status.st_mode):
            yield inner, path, status


# --- making it ------------------------------------------------------------------------------------


def _snapshot(session_dir: str, path: str, excludes: Sequence[str], below: str) -> str:
    """Return the snapshot of a place, made unless nothing has changed since it was made in this process."""
    if os.path.isdir(path):
        found = list(files_of(path, excludes))
    elif os.path.isfile(path):
        found = [("", path, os.stat(path))]
    else:
        raise ValueError(f"runtime_env: {path} does not exist")
    key = (session_dir, path, tuple(excludes), below)
    stamp = [(inner, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for inner, _path, s in found]
    known = _made.get(key)
    if known is not None and known[0] == stamp:
        return known[1]
    is_zip = path.endswith(".zip") and not os.path.isdir(path)
    if not is_zip:
        _check_size(path, [(s.st_size, inner or path) for inner, _path, s in found])
    name = _make(session_dir, path, found, below, is_zip)
    _made[key] = (stamp, name)
    return name


def _check_size(path: str, sizes: list[tuple[int, str]]) -> None:
    total = sum(size for size, _name in sizes)
    limit = _limit_bytes()
    if total > limit:
        largest = ", ".join(f"{name} ({size / 1e6:.1f} MB)" for size, name in sorted(sizes)[:-4:-1])
        raise ValueError(
            f"runtime_env: {path} has {total / 1e6:.1f} MB, and at most {limit / 1e6:.1f} MB are allowed"
            f" ({_LIMIT_VARIABLE}). Largest: {largest}. Leave out what workers do not need with 'excludes' or"
            " a .gitignore."
        )


def _make(
    session_dir: str, path: str, found: list[tuple[str, str, os.stat_result]], below: str, is_zip: bool
) -> str:
    parent = os.path.join(session_dir, DIRECTORY)
    os.makedirs(parent, 0o700, exist_ok=True)
    temporary = os.path.join(parent, f".{os.getpid()}-{os.urandom(6).hex()}")
    os.mkdir(temporary, 0o700)
    try:
        if is_zip:
            name = _unpack(path, temporary)
        else:
            name = _copy(found, temporary, below)
        _protect(temporary)
        target = os.path.join(parent, name)
        if not os.path.isdir(target):
            try:
                os.rename(temporary, target)
            except OSError:
                if not os.path.isdir(target):  # unless another process was faster
                    raise
    finally:
        remove_tree(temporary)
    return SNAPSHOT + name


def _copy(found: list[tuple[str, str, os.stat_result]], target: str, below: str) -> str:
    digest = hashlib.sha256()
    for inner, path, status in found:
        name = "/".join(part for part in (below, inner) if part)
        destination = os.path.join(target, name)
        os.makedirs(os.path.dirname(destination), 0o700, exist_ok=True)
        executable = bool(status.st_mode & 0o100)
        with open(path, "rb") as source, open(destination, "wb") as copy:
            _note(digest, name, executable, _copy_bytes(source, copy))
        os.chmod(destination, 0o544 if executable else 0o444)
    if not found and below:
        os.mkdir(os.path.join(target, below), 0o700)
    return digest.hexdigest()[:40]


def _copy_bytes(source: IO[bytes], copy: IO[bytes]) -> bytes:
    """Copy, and return the hash of what was copied."""
    digest = hashlib.sha256()
    while data := source.read(_CHUNK_BYTES):
        digest.update(data)
        copy.write(data)
    return digest.digest()


def _note(digest: hashlib._Hash, name: str, executable: bool, content: bytes) -> None:
    raw = name.encode("utf-8", "surrogateescape")
    digest.update(len(raw).to_bytes(4, "little") + raw + bytes([executable]) + content)


def _unpack(path: str, target: str) -> str:
    import zipfile

    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(path) as archive:
            members = sorted((m for m in archive.infolist() if not m.is_dir()), key=lambda m: m.filename)
            _check_size(path, [(member.file_size, member.filename) for member in members])
            for member in members:
                parts = member.filename.split("/")
                if member.filename.startswith("/") or ".." in parts:
                    raise ValueError(f"runtime_env: {path} has an entry outside of it: {member.filename}")
                destination = os.path.join(target, *parts)
                os.makedirs(os.path.dirname(destination), 0o700, exist_ok=True)
                executable = bool(member.external_attr >> 16 & 0o100)
                with archive.open(member) as source, open(destination, "wb") as copy:
                    _note(digest, member.filename, executable, _copy_bytes(source, copy))
                os.chmod(destination, 0o544 if executable else 0o444)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"runtime_env: {path} is no zip file that can be read: {error}") from error
    return digest.hexdigest()[:40]


def _protect(root: str) -> None:
    """Nobody changes a snapshot, not by mistake either."""
    for directory, _directories, _files in os.walk(root, topdown=False):
        os.chmod(directory, 0o555)


def remove_tree(path: str) -> None:
    """Remove a snapshot or what there is of one."""
    if not os.path.isdir(path):
        return
    for directory, _directories, _files in os.walk(path):
        os.chmod(directory, 0o700)
    shutil.rmtree(path)
