"""A store of objects as a double for gs:// and s3://: whole conditional puts, no directories, faults on demand."""

import io
import threading
from contextlib import contextmanager
from pathlib import Path

from fsspec import AbstractFileSystem
from fsspec.registry import _registry


class ObjectStore(AbstractFileSystem):
    """`fault`, if set, is called around every put with the path: raise before or after the object is stored."""

    protocol = "s3"
    cachable = False
    objects: dict[str, bytes]
    lock: threading.Lock
    fault_before = None
    fault_after = None

    @classmethod
    def _strip_protocol(cls, path):
        return path.removeprefix("s3://").strip("/")

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        path = self._strip_protocol(path)
        if self.fault_before:
            self.fault_before(path)
        with self.lock:
            if mode == "create" and path in self.objects:
                raise FileExistsError(path)
            self.objects[path] = bytes(value)
        if self.fault_after:
            self.fault_after(path)

    def put_file(self, lpath, rpath, mode="overwrite", **kwargs):
        self.pipe_file(rpath, Path(lpath).read_bytes(), mode)

    def info(self, path, **kwargs):
        path = self._strip_protocol(path)
        if path in self.objects:
            etag = f'"{hash(self.objects[path]):x}"'
            return {"name": path, "size": len(self.objects[path]), "type": "file", "ETag": etag}
        if any(name.startswith(path + "/") for name in tuple(self.objects)):
            return {"name": path, "size": 0, "type": "directory"}
        raise FileNotFoundError(path)

    def ls(self, path, detail=True, **kwargs):
        path = self._strip_protocol(path)
        inside = {name[len(path) + 1 :].split("/")[0] for name in tuple(self.objects) if name.startswith(path + "/")}
        if not inside:
            return [self.info(path)] if detail else [self.info(path)["name"]]
        found = [self.info(f"{path}/{name}") for name in sorted(inside)]
        return found if detail else [info["name"] for info in found]

    def _open(self, path, mode="rb", **kwargs):
        path = self._strip_protocol(path)
        if path not in self.objects:
            raise FileNotFoundError(path)
        return io.BytesIO(self.objects[path])

    def rm_file(self, path):
        del self.objects[self._strip_protocol(path)]


@contextmanager
def object_store():
    """An empty store behind s3://; yields its class."""
    fresh = type("FreshStore", (ObjectStore,), {"objects": {}, "lock": threading.Lock()})
    before = _registry.get("s3")
    _registry["s3"] = fresh
    try:
        yield fresh
    finally:
        if before is None:
            del _registry["s3"]
        else:
            _registry["s3"] = before
