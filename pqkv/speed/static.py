"""`pqkv bench --static`: what the assembler says of the CUDA kernels, and what a model makes of it on a named GPU.

The model. Nothing here is measured on a GPU, except the bank conflicts (by counting them for uniform codes).

- A multiprocessor starts 4 instructions of 32 lanes a clock and serves one wavefront of shared memory a clock. Look-ups
  take max(instructions / 4, wavefronts) clocks; instructions per look-up are counted in the SASS of the innermost loop.
- A key look-up of one word takes the wavefronts of `CONFLICTS`, a wider one as many times more as it has words. A value
  look-up takes one: lanes own subspaces, so their banks differ. Query and weights are broadcast, one wavefront a load.
- All look-ups and all bytes overlap: the larger of the two times counts. Device memory gives its full bandwidth.
- Tables are built once a block and overlap with nothing: instructions of the building loop, or centroids from the
  second-level cache at its bandwidth, whichever takes longer.
- Partial results are written and read once, at device memory's bandwidth.
- Blocks take equally long; the multiprocessor with the most of them decides.
- Not in it: launches, the merge, latency that too few warps leave open, the softmax, waiting at barriers, the clock
  under load, and all that recipe pqkv adds to product codes: a bias by position, gains, a query of their own. So for
  codes it is a lower bound to test kernels against, most of all for short contexts.

`pqkv.speed.assumptions` has each of these with its source, and counts what is left out.

Exact kernels: the instructions of the token loop, divisions that it rarely takes among them, against bytes over
bandwidth: above what they take where instructions decide.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pqkv.codec import code_bits, code_geometry
from pqkv.config import BenchConfig, CodeShape, digest_of
from pqkv.env import environment, git_state, machine_name
from pqkv.errors import ConfigError
from pqkv.kernels.cuda.backend import heads_of_block
from pqkv.kernels.cuda.coded import CodedVariant, Codes, coded_variant
from pqkv.kernels.cuda.compile import Report, compile_coded, compile_exact, disassemble, find_ptxas
from pqkv.kernels.cuda.exact import ExactVariant, fitting
from pqkv.kernels.cuda.splits import choose_coded_splits, choose_splits, stretches
from pqkv.record import Metric, Record, RecordStore, utc_now
from pqkv.speed.sass import Loop, phases, streaming_loop
from pqkv.speed.synthetic import lengths_of, parts_of

Tell = Callable[[str, int, int], None]

GROUPS = (1, 2, 4, 8)
EXACT_DTYPES = ("float16", "bfloat16", "float32")
TARGETS = {1: 6.5, 2: 3.5}  # query heads -> instructions per (look-up, head) at 256 entries that kernels are held to

# Wavefronts of a load from shared memory by 32 lanes, each of a uniformly drawn word of a table of so many words
CONFLICTS = {16: 1.0, 32: 1.0, 64: 2.0, 128: 2.8, 256: 3.2}
MOST_CONFLICTS = 3.5  # of 32 lanes at 32 banks drawn at random
UNROLLED = 6.0  # instructions taken for a word of a table so small that the compiler left no loop to count
_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}


@dataclass(frozen=True, slots=True)
class Gpu:
    """What the model takes of a GPU. `shared_bytes` is what all blocks of a multiprocessor have together."""

    name: str
    capability: tuple[int, int]
    multiprocessors: int
    clock_ghz: float
    hbm_gbs: float
    shared_bytes: int
    l2_bytes_per_clock: int = 5120
    wavefronts_per_clock: float = 1.0
    issues_per_clock: int = 4
    registers: int = 65536
    warps: int = 64
    blocks: int = 32


# NVIDIA's data sheets (H100 SXM, H200 SXM, A100 80GB SXM): memory bandwidth; the clock is the one that gives their peak
# of float32 (67, 67 and 19.5 TFLOPS over multiprocessors * lanes * 2). Architecture white papers: multiprocessors,
# second-level bandwidth (of the A100; taken for Hopper too). CUDA programming guide, table of compute capabilities: the
# limits of a multiprocessor; 32 banks of 4 bytes a clock.
GPUS = {
    "h100": Gpu("h100", (9, 0), 132, 1.98, 3350, 228 << 10),
    "h200": Gpu("h200", (9, 0), 132, 1.98, 4800, 228 << 10),
    "a100": Gpu("a100", (8, 0), 108, 1.41, 2039, 164 << 10),
}


def gpu_named(name: str) -> Gpu:
    """Raises `ConfigError`, listing the known names, for one that is not among them."""
    if name not in GPUS:
        raise ConfigError(f"unknown GPU '{name}'; known: {', '.join(GPUS)}")
    return GPUS[name]


@dataclass(frozen=True, slots=True)
class Occupancy:
    """How many blocks and warps a multiprocessor holds at a time, and what allows no more."""

    blocks: int
    warps: int
    limit: str


def occupancy(report: Report, block: int, gpu: Gpu) -> Occupancy:
    """By the rules of NVIDIA's occupancy calculator for compute capability 8.0 and 9.0: registers are dealt to warps in
    lots of 256, warps to four schedulers; a block's shared memory is its own and 1 KiB, in lots of 128 bytes.
    """
    warps = -(-block // 32)
    lot = -(-report.registers * 32 // 256) * 256
    by_registers = gpu.registers // lot // 4 * 4 // warps
    by_shared = gpu.shared_bytes // (-(-(report.shared_bytes + 1024) // 128) * 128)
    limits = {"registers": by_registers, "shared memory": by_shared, "warps": gpu.warps // warps, "blocks": gpu.blocks}
    limit = min(limits, key=lambda name: limits[name])
    return Occupancy(limits[limit], limits[limit] * warps, limit)


@dataclass(frozen=True, slots=True)
class Phase:
    """One phase of `coded_kernel`, for each (token, subspace, query head): all instructions of the innermost loop, and
    its loads that are broadcast; for each word of its tables: the instructions that make it,
    None where the compiler left no loop to count.
    """

    instructions: float
    broadcasts: float
    per_table_word: float | None


@dataclass(frozen=True, slots=True)
class Kernel:
    """A variant with what is known of it. No phases without a disassembler; `loop` is that of exact kernels."""

    variant: CodedVariant | ExactVariant
    report: Report
    occupancy: Occupancy
    keys: Phase | None = None
    values: Phase | None = None
    loop: float | None = None


def examine(variant: CodedVariant | ExactVariant, gpu: Gpu) -> Kernel:
    """Compile for `gpu` and look at the result. Raises `KernelError` where the assembler is missing."""
    if isinstance(variant, CodedVariant):
        found = compile_coded(variant, gpu.capability)
    else:
        found = compile_exact(variant, gpu.capability)
    fits = occupancy(found.report, variant.block, gpu)
    text = disassemble(found.cubin)
    if text is None:
        return Kernel(variant, found.report, fits)
    if not isinstance(variant, CodedVariant):
        return Kernel(variant, found.report, fits, loop=_token_loop(variant, streaming_loop(text)))
    seen = phases(text)
    return Kernel(
        variant, found.report, fits,
        _phase(seen.keys, seen.key_tables, variant.entry_words, variant.group),
        _phase(seen.values, seen.value_tables, variant.values.centroid_words, variant.group),
    )  # fmt: skip


def _token_loop(variant: ExactVariant, loop: Loop | None) -> float | None:
    """Instructions for a lane's tokens of one round. The compiler may write the body several times for cases that
    exclude each other; a body exchanges a known number of times.
    """
    if loop is None:
        return None
    exchanges = variant.tokens * variant.group * (variant.lanes.bit_length() - 1)
    return len(loop.instructions) / max(1, loop.count("SHFL") // max(1, exchanges))


def _phase(loop: Loop | None, tables: Loop | None, words: int, group: int) -> Phase | None:
    if loop is None:
        return None
    served = loop.lookups / words * group
    built = None if tables is None else len(tables.instructions) / tables.stores
    return Phase(len(loop.instructions) / served, loop.loads / served, built)


def predict(config: BenchConfig, kernel: Kernel, gpu: Gpu, batch: int, context: int) -> float | None:
    """Milliseconds of one decoding step by the model; None where its instructions are not known."""
    variant = kernel.variant
    shape = (variant.keys.num_subspaces, variant.keys.nbits) if isinstance(variant, CodedVariant) else None
    lengths = lengths_of(batch, context, config.ragged)
    parts = [parts_of(config, n, shape) for n in lengths]
    Hkv, D = config.kv_heads, config.head_dim
    blocks_a_head = -(-(config.heads // Hkv) // variant.group)
    units = batch * Hkv * blocks_a_head
    clocks_per_ms, bytes_per_ms = gpu.clock_ghz * 1e6, gpu.hbm_gbs * 1e6
    if isinstance(variant, ExactVariant):
        if kernel.loop is None:
            return None
        tokens = sum(lengths)
        splits = choose_splits(units, max(lengths), gpu.multiprocessors)
        warps = tokens * Hkv * blocks_a_head / variant.tokens * variant.lanes / 32
        busy = warps * kernel.loop / gpu.issues_per_clock * _unevenness(units * splits, gpu)
        moved = 2 * tokens * Hkv * D * _BYTES[variant.dtype] / bytes_per_ms
        return max(busy / gpu.multiprocessors / clocks_per_ms, moved) + _partial(units * splits, variant, D, gpu)
    if kernel.keys is None or kernel.values is None:
        return None
    coded, exact = sum(part[1] for part in parts), sum(part[0] + part[2] for part in parts)
    longest = -(-max(part[1] for part in parts) // config.page_size) * config.page_size
    vector = 2 * Hkv * D * _BYTES[config.dtype]
    if not coded:
        return exact * vector / bytes_per_ms
    splits = choose_coded_splits(
        units, longest, gpu.multiprocessors, most_tokens=variant.tokens, build_tokens=variant.build_tokens,
        warps=variant.block // 32,
    )  # fmt: skip
    share, splits = stretches(
        longest, splits, tokens=variant.tokens, together=variant.together, windowed=config.window is not None
    )  # fmt: skip
    blocks = sum(-(-part[1] // share) for part in parts) * Hkv * blocks_a_head
    clocks = coded * Hkv * blocks_a_head * clocks_per_token(kernel, gpu)
    uneven = _unevenness(blocks, gpu)
    code_bytes = coded * Hkv * sum(side.num_subspaces * side.nbits for side in (variant.keys, variant.values)) / 8
    look_ups = clocks * uneven / gpu.multiprocessors / clocks_per_ms
    tables = blocks * table_clocks(kernel, gpu) * uneven / gpu.multiprocessors / clocks_per_ms
    read = (code_bytes + exact * vector) / bytes_per_ms
    return max(look_ups, read) + tables + _partial(blocks, variant, D, gpu)


def clocks_per_token(kernel: Kernel, gpu: Gpu) -> float:
    """Clocks of one multiprocessor for all look-ups of a token in one KV head, by one block's query heads."""
    variant, total = kernel.variant, 0.0
    assert isinstance(variant, CodedVariant)
    conflict = CONFLICTS.get(variant.keys.entries, 1.0 if variant.keys.entries < 16 else MOST_CONFLICTS)
    sides = (
        (variant.keys, kernel.keys, variant.entry_words * conflict),
        (variant.values, kernel.values, float(variant.values.centroid_words)),
    )
    for side, phase, wavefronts in sides:
        assert phase is not None
        issued = phase.instructions * variant.group / gpu.issues_per_clock
        served = (wavefronts + phase.broadcasts * variant.group) / gpu.wavefronts_per_clock
        total += side.num_subspaces / 32 * max(issued, served)
    return total


def table_clocks(kernel: Kernel, gpu: Gpu) -> float:
    """Clocks of one multiprocessor to build the tables of one block."""
    variant = kernel.variant
    assert isinstance(variant, CodedVariant) and kernel.keys is not None and kernel.values is not None
    keys, values = variant.keys, variant.values
    entries = keys.num_subspaces * keys.entries, values.num_subspaces * values.entries
    words = entries[0] * variant.entry_words, entries[1] * values.centroid_words
    made = (phase.per_table_word or UNROLLED for phase in (kernel.keys, kernel.values))
    issued = sum(count * each for count, each in zip(words, made, strict=True))
    read = 4 * (entries[0] * keys.centroid_words + entries[1] * values.centroid_words)
    return max(issued / 32 / gpu.issues_per_clock, read / (gpu.l2_bytes_per_clock / gpu.multiprocessors))


def _unevenness(blocks: int, gpu: Gpu) -> float:
    """Blocks of the busiest multiprocessor over the mean."""
    return -(-blocks // gpu.multiprocessors) * gpu.multiprocessors / blocks


def _partial(slots: int, variant: CodedVariant | ExactVariant, head_dim: int, gpu: Gpu) -> float:
    return 2 * slots * variant.group * (head_dim + 2) * 4 / (gpu.hbm_gbs * 1e6)


Named = tuple[float, tuple[int, int] | None, str, CodedVariant | ExactVariant]  # bits, (M, nbits), dtype, variant


def variants(config: BenchConfig, everything: bool) -> list[Named]:
    """What is looked at: every shape (`everything`: 4, 3 and 2 bits, 16 entries, exact) at 1, 2, 4, 8 query heads a
    block and at the number that `config` has.
    """
    D = config.head_dim
    shapes: list[tuple[int, int] | None] = []
    if everything:
        shapes = [*(code_geometry(CodeShape(bits=bits), D) for bits in (4, 3, 2)), (D, 4), (D // 2, 4), None]
    elif config.num_subspaces is not None and config.nbits is not None:
        shapes = [code_geometry(CodeShape(num_subspaces=config.num_subspaces, nbits=config.nbits), D)]
    else:
        shapes = [code_geometry(CodeShape(bits=bits), D) if bits else None for bits in config.bits]
    groups = sorted({*GROUPS, heads_of_block(config.heads // config.kv_heads)})
    found: list[Named] = []
    for shape in shapes:
        for group in groups:
            if shape is None:
                found += [(0.0, None, dtype, fitting(ExactVariant(dtype, D, group))) for dtype in EXACT_DTYPES]
            else:
                M, nbits = shape
                sides = (Codes(M, nbits, D // M, layout) for layout in (config.key_layout, config.value_layout))
                found.append((code_bits(M, nbits, D), shape, "float16", coded_variant(group, *sides)))
    return found


def static(
    config: BenchConfig,
    gpu: Gpu,
    store: RecordStore | None = None,
    *,
    everything: bool = False,
    report: Tell | None = None,
) -> Iterator[Record]:
    """One record of kind "static" for each variant. Raises `KernelError` where the assembler is missing."""
    find_ptxas()
    tell = report or (lambda stage, done, total: None)
    chosen = variants(config, everything)
    env, git = environment(), git_state()
    if store is not None:
        store.check_writable()
    for number, (bits, shape, dtype, variant) in enumerate(chosen):
        name = f"{bits:g} bits" if bits else f"exact {dtype}"
        tell(f"{name}, {variant.group} query heads", number, len(chosen))
        described = _describe(config, gpu, bits, shape, dtype, variant) | {"machine": machine_name({**env, "gpus": []})}
        started, clock = utc_now(), time.perf_counter()
        outcome = _look(config, gpu, variant)
        record = Record(
            kind="static",
            config=described,
            digest=digest_of(described),
            env=env,
            git=git,
            seed=config.seed,
            status="ok",
            started_at=started,
            seconds=time.perf_counter() - clock,
            **outcome,
        )
        if store is not None:
            store.write(record)
        yield record
    tell("done", len(chosen), len(chosen))


def _describe(
    config: BenchConfig,
    gpu: Gpu,
    bits: float,
    shape: tuple[int, int] | None,
    dtype: str,
    variant: CodedVariant | ExactVariant,
) -> dict[str, Any]:
    M, nbits = shape or (None, None)
    kept = {"head_dim", "page_size", "residual", "sink_tokens", "key_layout", "value_layout", "heads", "kv_heads"}
    settings = config.model_dump(mode="json", include=kept | {"lengths", "batch", "ragged"})
    return settings | {
        "model": f"one KV head of {config.head_dim}, {variant.group} query heads a block",
        "data": "none: compiled, not run",
        "mode": "static",
        "device": gpu.name,
        "backend": "cuda",
        "dtype": dtype,
        "bits": bits,
        "num_subspaces": M,
        "nbits": nbits,
        "group": variant.group,
        "block": variant.block,
    }


def _look(config: BenchConfig, gpu: Gpu, variant: CodedVariant | ExactVariant) -> dict[str, Any]:
    obstacle = variant.obstacle(config.page_size) if isinstance(variant, CodedVariant) else None
    if obstacle is not None:
        return {"notes": [f"the plain kernel serves it: {obstacle}"]}
    kernel = examine(variant, gpu)
    figures: dict[str, tuple[float | None, str]] = {
        "registers": (kernel.report.registers, ""),
        "static_shared_bytes": (kernel.report.shared_bytes, "B"),
        "spill_bytes": (kernel.report.spill_bytes, "B"),
        "stack_bytes": (kernel.report.stack_bytes, "B"),
        "blocks_per_multiprocessor": (kernel.occupancy.blocks, ""),
        "warps_per_multiprocessor": (kernel.occupancy.warps, ""),
        "key_instructions": (kernel.keys.instructions if kernel.keys else None, ""),
        "value_instructions": (kernel.values.instructions if kernel.values else None, ""),
        "key_table_instructions": (kernel.keys.per_table_word if kernel.keys else None, ""),
        "value_table_instructions": (kernel.values.per_table_word if kernel.values else None, ""),
    }
    rows = []
    own = heads_of_block(config.heads // config.kv_heads)
    if variant.group == own:
        for batch in config.batch:
            for n in config.lengths:
                ms = predict(config, kernel, gpu, batch, n)
                rows.append({"batch": batch, "context": n, "heads": config.heads, "predicted_ms": ms})
    target = TARGETS.get(variant.group) if isinstance(variant, CodedVariant) and variant.keys.nbits == 8 else None
    limits = [{"limit": kernel.occupancy.limit, "target_instructions": target}]
    metrics = {name: Metric(value=value, unit=unit) for name, (value, unit) in figures.items() if value is not None}
    return {"metrics": metrics, "tables": {"limits": limits, "predictions": rows}}
