"""Keys and values of the chosen side rows into the paged caches, of all layers in one launch."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

COLUMNS = 9
BLOCK = 1024


@triton.jit(do_not_specialize=("rows",), do_not_specialize_on_alignment=("p_kept", "p_where"))
def commit_kernel(
    p_layers,  # [L, 9] int64, see `_Group`
    p_kept,  # [L][rows, 2, heads, dim], whatever bits the cache holds
    p_where,  # [L, rows] int64, cache slots
    p_chosen,  # [P] int64, the side row of each request
    rows,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program per (layer, request, key or value)."""
    i_l, i_p, i_v = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    p_layers += i_l * COLUMNS
    element = p_kept.dtype.element_ty
    p_cache = tl.load(p_layers + i_v).to(tl.pointer_type(element))
    s_block = tl.load(p_layers + 2)
    s_position = tl.load(p_layers + 3)
    s_head = tl.load(p_layers + 4)
    block_size = tl.load(p_layers + 5)
    size, dim = tl.load(p_layers + 6), tl.load(p_layers + 7)
    before = tl.load(p_layers + 8)
    row = tl.load(p_chosen + i_p)
    slot = tl.load(p_where + i_l.to(tl.int64) * rows + row)
    p_cache += slot // block_size * s_block + slot % block_size * s_position
    p_kept += before * rows + (2 * row + i_v) * size
    for start in range(0, size, BLOCK):
        i = start + tl.arange(0, BLOCK)
        m = i < size
        x = tl.load(p_kept + i, mask=m)
        tl.store(p_cache + i // dim * s_head + i % dim, x, mask=m)


class Caches:
    """The paged caches of a model's layers.

    layers: key and value cache of each, [blocks, block_size, num_kv_heads, head_dim], any strides
    but in the last dimension, which is contiguous. ValueError for others.
    """

    def __init__(self, layers: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        sizes = sorted({key.element_size() for key, _ in layers})
        self.groups = [
            _Group([kv for kv in layers if kv[0].element_size() == size]) for size in sizes
        ]
        places = [0] * len(sizes)
        self.places: list[tuple[int, int]] = []  # group and line in it, by layer
        for key, _ in layers:
            group = sizes.index(key.element_size())
            self.places.append((group, places[group]))
            places[group] += 1

    def keep(self, rows: int) -> "Kept":
        """Room for the side rows of one step."""
        return Kept(self, rows)


class Kept:
    """Keys and values of one step's side rows, in the caches' dtypes."""

    def __init__(self, caches: Caches, rows: int) -> None:
        self.caches, self.rows = caches, rows
        self.parts = [group.allocate(rows) for group in caches.groups]

    def layer(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Of a layer: [rows, 2, num_kv_heads, head_dim], float8 as uint8, and [rows] int64."""
        number, line = self.caches.places[index]
        group, (kept, where) = self.caches.groups[number], self.parts[number]
        first, size = group.before[line] * self.rows, group.sizes[line] * self.rows
        part = kept[first : first + 2 * size]
        dtype = group.dtypes[line]
        return (part if dtype.itemsize == 1 else part.view(dtype)), where[line]

    def commit(self, chosen: torch.Tensor) -> None:
        """Write rows into the caches: one launch, or one for each width of elements.

        chosen: [P] int64, one of the side rows of each request.
        """
        for group, (kept, where) in zip(self.caches.groups, self.parts, strict=True):
            commit_kernel[(len(group.sizes), chosen.shape[0], 2)](
                *(group.table, kept, where, chosen, self.rows), COLUMNS=COLUMNS, BLOCK=BLOCK
            )


class _Group:
    """Layers whose caches have elements of one width.

    table: [L, 9] int64, addresses of the key and the value cache; strides of a block, a position
    and a head; positions of a block; elements of a row; head size; elements kept before, a row.
    """

    def __init__(self, layers: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        first = layers[0][0]
        self.bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[first.element_size()]
        self.device = first.device
        self.dtypes = [key.dtype for key, _ in layers]
        self.sizes = [key.shape[2] * key.shape[3] for key, _ in layers]
        self.before = [2 * sum(self.sizes[:i]) for i in range(len(layers))]
        lines = []
        for (key, value), size, before in zip(layers, self.sizes, self.before, strict=True):
            if key.stride(3) != 1 or key.shape != value.shape or key.stride() != value.stride():
                raise ValueError("key and value caches must have one shape and contiguous heads")
            addresses = (key.data_ptr(), value.data_ptr())
            lines.append([*addresses, *key.stride()[:3], key.shape[1], size, key.shape[3], before])
        self.table = torch.tensor(lines, dtype=torch.int64, device=self.device)

    def allocate(self, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        size = 2 * sum(self.sizes) * rows
        kept = torch.empty(size, dtype=self.bits, device=self.device)
        where = torch.empty(len(self.sizes), rows, dtype=torch.int64, device=self.device)
        return kept, where
