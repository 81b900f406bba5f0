"""Ways to spoil a sound HDF5 file by what HDF5 itself allows: other types, shapes, storage, links, members."""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from gwtwins.benchmarks.fuzz_mutations import ANY, REFUSED, SAME, Mutation, Rng, pick

_BOMB = 1 << 24  # entries, 1000 times as large as what is stored of them


def _datasets(file: h5py.File) -> list[str]:
    found: list[str] = []
    file.visititems(lambda name, node: found.append(name) if isinstance(node, h5py.Dataset) else None)
    return sorted(found)


_TYPES: tuple[Any, ...] = (
    "i1", "u1", "u8", "f2", "f4", ">f8", "f8", "c16", "?", "S1", "S0x", "V3", "S100", h5py.string_dtype(),
    [("a", "f8"), ("b", "i4")], h5py.vlen_dtype(np.float64), h5py.enum_dtype({"a": 0, "b": 1}), h5py.ref_dtype,
    h5py.regionref_dtype, ("f8", (3,)),
)  # fmt: skip


def _as_type(values: Any, kind: Any) -> tuple[np.ndarray | None, Any]:
    kind = "S4" if kind == "S0x" else kind
    try:
        return np.asarray(values).astype(kind), kind
    except (TypeError, ValueError, OverflowError):
        return None, kind


def _remake(group: h5py.Group, name: str, keep: dict[str, Any], **how: Any) -> h5py.Dataset:
    del group[name]
    made = group.create_dataset(name, **how)
    for key, value in keep.items():
        made.attrs[key] = value
    return made


def hdf5_dataset(rng: Rng, path: Path) -> tuple[str, str]:
    """A dataset of another type, shape, content or storage."""
    other = path.with_name("sound.hdf5")
    shutil.copyfile(path, other)
    with h5py.File(path, "r+") as file:
        name = pick(rng, _datasets(file))
        data = file[name]
        held, keep, shape = data[()], dict(data.attrs), data.shape
        kind = pick(rng, tuple(_DATASET))
        said, may = _DATASET[kind](rng, file, name, held, keep, shape, other)
    return f"{name}: {kind} {said}", may


def _retype(rng: Rng, file: Any, name: str, held: Any, keep: Any, shape: Any, other: Path) -> tuple[str, str]:
    values, kind = _as_type(held, pick(rng, _TYPES))
    if values is None:
        _remake(file, name, keep, shape=shape, dtype=kind)
    else:
        _remake(file, name, keep, data=values, dtype=kind if isinstance(kind, str | np.dtype) else None)
    return str(kind), ANY


def _reshape(rng: Rng, file: Any, name: str, held: Any, keep: Any, shape: Any, other: Path) -> tuple[str, str]:
    values = np.asarray(held)
    kind = pick(rng, ("more axes", "flat", "shorter", "longer", "none", "null", "scalar", "transposed"))
    if kind == "null":
        _remake(file, name, keep, data=h5py.Empty("f8"))
        return kind, ANY
    new = {
        "more axes": values[..., None],
        "flat": values.reshape(-1),
        "shorter": values.reshape(-1)[:-1] if values.ndim < 2 else values[:-1],
        "longer": np.concatenate([np.atleast_1d(values)] * 2),
        "none": np.atleast_1d(values)[:0],
        "scalar": values.reshape(-1)[0] if values.size else values,
        "transposed": values.T,
    }[kind]
    _remake(file, name, keep, data=new, dtype=file[name].dtype)
    return kind, ANY


def _refill(rng: Rng, file: Any, name: str, held: Any, keep: Any, shape: Any, other: Path) -> tuple[str, str]:
    values = np.array(held)
    if values.dtype.kind not in "iufb":
        word = pick(rng, (b"", b"\x1b[31m\n", b"../../x", b"<b>=1+1", b"\xff\xfe", b"H1" * 5000, b"NaN"))
        file[name][...] = (
            word[: values.dtype.itemsize] if values.dtype.kind == "S" else word.decode("latin-1").replace("\0", "")
        )
        return repr(word[:20]), ANY
    nasty: tuple[float, ...] = (np.nan, np.inf, -np.inf, 0.0, -1.0, 1e308, 1e-310, 1e-3, 255.0, 2.0**62)
    if values.dtype.kind != "f":
        nasty = tuple(v for v in nasty if np.isfinite(v) and abs(v) < 100) + (7.0,)
    value = pick(rng, nasty)
    with np.errstate(all="ignore"):
        if rng.random() < 0.5 or not values.ndim:
            values[...] = np.array(value).astype(values.dtype)
        else:
            flat = values.reshape(-1)
            flat[rng.integers(flat.size, size=3)] = np.array(value).astype(values.dtype)
    file[name][...] = values
    return f"{value:g}", ANY


def _restore(rng: Rng, file: Any, name: str, held: Any, keep: Any, shape: Any, other: Path) -> tuple[str, str]:
    how = pick(
        rng,
        ({"compression": "gzip"}, {"compression": "lzf"}, {"shuffle": True}, {"fletcher32": True}, {"chunks": True}),
    )
    if not shape:
        return "left", SAME
    _remake(file, name, keep, data=held, dtype=file[name].dtype, **how)
    return str(how), SAME


def _elsewhere(rng: Rng, file: Any, name: str, held: Any, keep: Any, shape: Any, other: Path) -> tuple[str, str]:
    kind = pick(
        rng,
        ("external link", "virtual", "external storage", "soft link", "broken link", "group", "cycle", "gone", "type"),
    )
    dtype = file[name].dtype
    if kind == "soft link":
        file.move(name, "moved-elsewhere")
        file[name] = h5py.SoftLink("/moved-elsewhere")
        return kind, SAME
    del file[name]
    if kind == "external link":
        file[name] = h5py.ExternalLink(str(other), "/" + name)
    elif kind == "broken link":
        file[name] = h5py.ExternalLink("/dev/zero", "/x")
    elif kind == "virtual":
        layout = h5py.VirtualLayout(shape or (1,), dtype)
        layout[...] = h5py.VirtualSource(str(other), name, shape or (1,))
        file.create_virtual_dataset(name, layout)
    elif kind == "external storage":
        raw = other.with_name("raw.bin")
        raw.write_bytes(bytes(1 << 16))
        file.create_dataset(
            name, shape or (1,), dtype if dtype.kind != "O" else "S2", external=[(str(raw), 0, h5py.h5f.UNLIMITED)]
        )
    elif kind == "group":
        file.create_group(name)
    elif kind == "cycle":
        file[name] = file["/"]
    elif kind == "type":
        file[name] = np.dtype("f8")
    return kind, ANY if kind == "gone" else REFUSED


def _absurd(rng: Rng, file: Any, name: str, held: Any, keep: Any, shape: Any, other: Path) -> tuple[str, str]:
    dtype = file[name].dtype
    axes = max(1, len(shape or ()))
    size = int(2 ** rng.uniform(20, 62))
    new = (size, *(shape or ())[1:]) if axes > 1 else (size,)
    chunk = tuple(min(s, int(2 ** rng.uniform(0, 20))) for s in new[:1]) + tuple(new[1:])
    keep = {**keep, **({"Npoints": size} if "Npoints" in keep else {})}
    kind = pick(rng, ("chunked", "chunked", "compressed", "contiguous"))
    how: dict[str, Any] = {"chunks": chunk} if kind != "contiguous" else {}
    try:
        _remake(
            file, name, keep, shape=new, dtype=dtype, **how, **({"compression": "gzip"} if kind == "compressed" else {})
        )
    except (ValueError, OSError, OverflowError, RuntimeError):
        return "could not be made", ANY
    return f"{kind} {new} in chunks of {chunk}", ANY


@cache
def _packed_zeros(size: int) -> bytes:
    packer, parts = zlib.compressobj(1), []
    for start in range(0, size, 1 << 22):
        parts.append(packer.compress(bytes(min(size - start, 1 << 22))))
    return b"".join(parts) + packer.flush()


def _bomb(rng: Rng, file: Any, name: str, held: Any, keep: Any, shape: Any, other: Path) -> tuple[str, str]:
    rows = _BOMB // max(1, int(np.prod((shape or ())[1:])))
    keep = {**keep, **({"Npoints": rows} if "Npoints" in keep else {})}
    kind = file[name].dtype
    if kind.kind == "O":
        return "left", SAME
    made = _remake(file, name, keep, shape=(rows, *(shape or ())[1:]), dtype=kind, chunks=(rows, *(shape or ())[1:]),
                   compression="gzip", compression_opts=1)  # fmt: skip
    made.id.write_direct_chunk((0,) * made.ndim, _packed_zeros(made.nbytes))
    return f"{made.nbytes} bytes in {made.id.get_storage_size()}", ANY


def _filter(rng: Rng, file: Any, name: str, held: Any, keep: Any, shape: Any, other: Path) -> tuple[str, str]:
    if not shape:
        return "left", SAME
    dtype = file[name].dtype
    del file[name]
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_chunk(shape)
    plan.set_filter(32000, h5py.h5z.FLAG_OPTIONAL, (1, 2))
    space = h5py.h5s.create_simple(shape)
    made = h5py.h5d.create(file.id, name.encode(), h5py.h5t.py_create(dtype, logical=True), space, plan)
    made.write_direct_chunk((0,) * len(shape), rng.bytes(64))
    data = h5py.Dataset(made)
    for key, value in keep.items():
        data.attrs[key] = value
    return "number 32000", REFUSED


_DATASET: dict[str, Callable[..., tuple[str, str]]] = {
    "type": _retype,
    "shape": _reshape,
    "content": _refill,
    "storage": _restore,
    "place": _elsewhere,
    "absurd": _absurd,
    "bomb": _bomb,
    "filter": _filter,
}


_VALUES: tuple[Any, ...] = (
    None, np.nan, np.inf, 0, -1, 1e300, 2**63, 1e-4, 4096.0, True, 1 + 2j, np.float16(1), "", "x", "nan", b"\x1b[31m\n",
    "../..", "y" * 60_000, np.zeros(0), np.zeros(3), np.zeros((2, 2)), np.zeros(7000), np.array([1.0]), np.array([1]),
    h5py.Empty("f8"), np.array([b"H1", b"H1"]), np.array([("a", 1)], [("n", "S2"), ("v", "i4")]),
    np.array(["a", "b"], object),
)  # fmt: skip


def hdf5_attribute(rng: Rng, path: Path) -> tuple[str, str]:
    """An attribute of another value, type or shape, or none."""
    with h5py.File(path, "r+") as file:
        held: list[tuple[str, str]] = []

        def look(name: str, node: Any) -> None:
            held.extend((name, key) for key in node.attrs)

        look("/", file)
        file.visititems(look)
        if not held:
            return "no attribute", SAME
        where, key = pick(rng, sorted(held))
        attrs = file[where].attrs
        value = pick(rng, _VALUES)
        if value is None:
            del attrs[key]
        elif isinstance(value, np.ndarray) and value.dtype == object:
            attrs.create(key, value, dtype=h5py.string_dtype())
        else:
            attrs[key] = value
    return f"{where}@{key}: {str(value)[:30]!a}", ANY


def hdf5_members(rng: Rng, path: Path) -> tuple[str, str]:
    """Groups and datasets too many, of odd names, or gone."""
    with h5py.File(path, "r+") as file:
        groups = ["/"]
        file.visititems(lambda name, node: groups.append(name) if isinstance(node, h5py.Group) else None)
        group = file[pick(rng, sorted(groups))]
        kind = pick(rng, ("odd name", "gone", "twice", "many", "renamed", "new detector"))
        names = sorted(group)
        name = pick(rng, names) if names else "x"
        if kind == "odd name":
            name = pick(rng, ("\x1b[31m", "..", "<b>", "=1", "é", "X9", "H1 ", "x" * 5000))
            group.create_dataset(name, data=np.zeros(8))
        elif kind == "gone" and names:
            del group[name]
        elif kind == "twice" and names:
            group[f"{name}2"] = group[name]
        elif kind == "many":
            for i in range(300):
                group.create_group(f"g{i}")
        elif kind == "renamed" and names:
            group.move(name, f"{name}x")
        elif kind == "new detector":
            group.create_group(pick(rng, ("K1", "G1", "Q9", "V1")))
        return f"{group.name}: {kind} {name[:20]!a}", ANY


HDF5: tuple[Mutation, ...] = (hdf5_dataset, hdf5_dataset, hdf5_dataset, hdf5_attribute, hdf5_members)
