"""Everything a user can ask for, validated once; unknown keys are errors.

A configuration is layered: defaults < file < flags. Its digest names the record of what was run.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from difflib import get_close_matches
from pathlib import Path
from reprlib import repr as shortened
from typing import Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from pqkv.errors import ConfigError

Layout = Literal["row", "transposed"]
Scope = Literal["head", "layer", "global"]
Channels = Literal["balanced", "adjacent", "opq"]
CodeMetric = Literal["query", "euclidean"]
Init = Literal["k-means++", "random"]
Recipe = Literal["pqkv", "product", "million"]
# what recipe pqkv has beside product codes, at attention time
Served = Literal["int8", "frame", "turning", "gains", "hadamard", "universal"]
SERVED: tuple[Served, ...] = ("int8", "frame", "turning", "gains", "hadamard", "universal")
Mode = Literal["exact-schedule", "token", "chunk", "decode", "all-coded"]
STEPWISE: tuple[Mode, ...] = ("token", "chunk", "decode")  # through the real cache and backend
Split = Literal["calibration", "test", "all"]
Bos = Literal["auto", "always", "never"]
Rope = Literal["default", "linear", "ntk", "yarn"]
Keep = Literal["attention-sum", "recent", "random"]
RecallForm = Literal["code", "word"]
Dtype = Literal["float32", "float64", "bfloat16", "float16"]
Metric = Literal["perplexity", "agreement", "kld", "recall", "softmax-mass"]

# bits per element -> (channels per subspace, nbits)
BIT_CHOICES: dict[float, tuple[int, int]] = {6: (1, 6), 4: (2, 8), 3: (2, 6), 2: (4, 8), 1.5: (4, 6), 1: (8, 8)}
ALL_METRICS: tuple[Metric, ...] = ("perplexity", "agreement", "kld", "recall", "softmax-mass")
NBITS_RANGE = (1, 12)
SINK_TOKENS = 4  # first tokens that a cache keeps exact, and that nothing is learnt from


def check_rope_factor(rope: Rope, factor: float | None) -> None:
    """Raise `ValueError` for a variant without a factor, and for a factor without a variant."""
    if (rope == "default") != (factor is None):
        raise ValueError(f"rope {rope} {'takes no' if rope == 'default' else 'needs a'} rope_factor")


class Settings(BaseModel):
    """Base of all configurations: frozen, strict about keys, with a digest."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    def digest(self) -> str:
        """Twelve hexadecimal digits of SHA-256 over the canonical JSON of this configuration."""
        return digest_of(self.model_dump(mode="json"))

    @classmethod
    def parse(cls, values: dict[str, Any], *, source: str = "configuration", also: tuple[str, ...] = ()) -> Self:
        """Validate `values`; raise `ConfigError` naming the first key that is wrong and why. `also` are keys that users
        may give and somebody else takes.
        """
        try:
            return cls(**values)
        except ValidationError as error:
            raise ConfigError(_first_problem(error, [*cls.model_fields, *also], source)) from error


class CodeShape(Settings):
    """How many codes a vector gets and how wide they are; `bits` is the marginal cost per element."""

    bits: float | None = Field(None, description="bits per element: 6, 4, 3, 2, 1.5 or 1")
    num_subspaces: int | None = Field(None, ge=1)
    nbits: int | None = Field(None, ge=NBITS_RANGE[0], le=NBITS_RANGE[1])

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        pair = (self.num_subspaces is not None, self.nbits is not None)
        if any(pair) and not all(pair):
            raise ValueError("num_subspaces and nbits go together")
        if all(pair) and self.bits is not None:
            raise ValueError("give either bits or num_subspaces with nbits, not both")
        return self


class TrainConfig(Settings):
    """`pqkv train-codebooks`."""

    model: str = "reference"
    dtype: Dtype = "float32"
    device: str = "cpu"
    device_map: str | None = Field(None, description="auto, balanced ...: layers spread over all devices")
    rope: Rope = Field("default", description="rotary embedding: the model's own, or one that reaches further")
    rope_factor: float | None = Field(None, gt=1, description="times the trained positions that it reaches")
    data: str = "stdlib"
    split: Split | None = None
    bos: Bos = Field("auto", description="a beginning-of-sequence token in front of every window")
    parse_special: bool = Field(False, description="control tokens where text spells them")
    bits: float | None = None
    num_subspaces: int | None = Field(None, ge=1)
    nbits: int | None = Field(None, ge=NBITS_RANGE[0], le=NBITS_RANGE[1])
    recipe: Recipe = Field(
        "pqkv",
        description="pqkv: keys around a mean that turns in their queries' frame, values with gains behind a Hadamard "
        "matrix; product: codes of the vectors as they are; million: those of the report",
    )
    codec: str | None = Field(None, description="a codec that is served, in place of recipe pqkv's own options")
    key_layer_bits: tuple[float, ...] = Field((), description="bits of each coded layer's keys; empty: bits")
    value_layer_bits: tuple[float, ...] = Field((), description="bits of each coded layer's values; empty: bits")
    scope: Scope = "head"
    channels: Channels = "balanced"
    metric: CodeMetric = "query"
    samples: int = Field(20480, ge=1, description="vectors per codebook, at most")
    calibration_tokens: int = Field(20480, ge=1)
    context: int = Field(1024, ge=2, description="length of a calibration window")
    positions: int = Field(8192, ge=2, description="windows stand at positions up to this, the model's at most")
    leave_out: int | None = Field(
        None, ge=0, description="first tokens of a window that are not learnt from; absent: 4 in recipe pqkv, or 0"
    )
    init: Init = Field("k-means++", description="where k-means begins; random: as FAISS, and MILLION")
    iterations: int = Field(25, ge=1, description="k-means iterations (MILLION: 25)")
    seed: int = Field(0, ge=0, lt=2**31)

    @model_validator(mode="before")
    @classmethod
    def _reported(cls, values: Any) -> Any:  # noqa: ANN401 - not validated yet
        if not isinstance(values, dict) or values.get("recipe") != "million":
            return values
        return {"scope": "global", "channels": "adjacent", "metric": "euclidean", "init": "random", **values}

    @model_validator(mode="after")
    def _check(self) -> Self:
        CodeShape(bits=self.bits, num_subspaces=self.num_subspaces, nbits=self.nbits)
        check_rope_factor(self.rope, self.rope_factor)
        if self.left_out() >= self.context:
            raise ValueError(f"leave_out {self.left_out()} leaves nothing to learn from in windows of {self.context}")
        if self.recipe != "pqkv" and (self.key_layer_bits or self.value_layer_bits or self.codec):
            raise ValueError("bits a layer, and codecs, are of recipe pqkv; take --recipe pqkv with them")
        own = ("bits", "num_subspaces", "nbits", "key_layer_bits", "value_layer_bits", "scope", "iterations")
        if self.codec and (given := self.model_fields_set & set(own)):
            raise ValueError(f"a codec says {min(given)} itself; give one or the other")
        if self.recipe == "pqkv":
            changed = [name for name in ("channels", "metric", "init") if getattr(self, name) != _default(self, name)]
            if changed:
                raise ValueError(f"{changed[0]} is an option of recipe product; take --recipe product with it")
            if self.scope == "global":
                raise ValueError("scope global is of recipe product: keys of two layers share no frame")
        width = self.nbits or BIT_CHOICES.get(4 if self.bits is None else self.bits, (0, 0))[1]
        tokens = max(self.context, self.calibration_tokens // self.context * self.context)
        if min(self.samples, tokens) < 2**width:
            raise ValueError(
                f"{min(self.samples, tokens)} calibration vectors cannot train {2**width} centroids; "
                f"{self.remedy(enough_text=True)}"
            )
        return self

    def left_out(self) -> int:
        """First tokens of a window that are not learnt from: recipe pqkv leaves sinks to a cache that keeps them."""
        return (SINK_TOKENS if self.recipe == "pqkv" else 0) if self.leave_out is None else self.leave_out

    def remedy(self, *, enough_text: bool) -> str:
        """What to change where centroids are more than vectors, in the words the user used."""
        fewer = "lower --nbits" if self.nbits is not None else "take fewer --bits"
        if self.samples < self.calibration_tokens and enough_text:
            return f"raise --samples ({self.samples}), or {fewer}"
        more = f"raise --calibration-tokens ({self.calibration_tokens})"
        return f"{more}, or {fewer}" if enough_text else f"give more text, {more}, or {fewer}"

    def code_shape(self) -> CodeShape:
        """The requested code shape; 4 bits where nothing was said."""
        if self.bits is None and self.num_subspaces is None:
            return CodeShape(bits=4)
        return CodeShape(bits=self.bits, num_subspaces=self.num_subspaces, nbits=self.nbits)


def _default(config: BaseModel, name: str) -> Any:  # noqa: ANN401 - of any field
    return type(config).model_fields[name].default


class CodecCalibration(Settings):
    """The text that codecs learn from, and how it is laid out: windows told positions as in `TrainConfig`."""

    data: str = "stdlib"
    split: Split | None = None
    bos: Bos = Field("auto", description="a beginning-of-sequence token in front of every window")
    parse_special: bool = Field(False, description="control tokens where text spells them")
    calibration_tokens: int = Field(24576, ge=1)
    context: int = Field(1024, ge=2, description="length of a calibration window")
    positions: int = Field(8192, ge=2, description="windows stand at positions up to this, the model's at most")
    leave_out: int = Field(
        SINK_TOKENS, ge=0, description="first tokens of a window that are not learnt from: sinks stay exact"
    )
    seed: int = Field(0, ge=0, lt=2**31)


class VisibleTokens(Settings):
    """What a query sees of its past; absent from a record where it is all of it."""

    window: int | None = Field(None, ge=1, description="newest tokens that a query sees, its own among them")
    window_sinks: int = Field(0, ge=0, description="first tokens that stay beside a window, or what is kept")
    keep: Keep | None = Field(None, description="which tokens of a prefill are kept")
    keep_share: float | None = Field(None, gt=0, lt=1, description="share of a prefill's tokens that is kept")

    @model_serializer(mode="wrap")
    def _only_if_set(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        usual = {name: field.default for name, field in VisibleTokens.model_fields.items()}
        values: dict[str, Any] = handler(self)
        return {name: value for name, value in values.items() if name not in usual or value != usual[name]}

    def check_visible(self, sink_tokens: int, *, paged: bool) -> None:
        """Raise `ValueError` for settings that do not go together."""
        if (self.keep is None) != (self.keep_share is None):
            raise ValueError("keep and keep_share go together: a policy, and the share of the tokens that it keeps")
        if self.keep is not None and self.window is not None:
            raise ValueError("a window and keep are two ways to see less; take one of them")
        if self.window is None and self.keep is None and self.window_sinks:
            raise ValueError("window_sinks stay beside a window, or beside what keep keeps; give one of them")
        if self.window_sinks > sink_tokens:
            raise ValueError(
                f"window_sinks ({self.window_sinks}) are more than sink_tokens ({sink_tokens}): what stays visible "
                "stays exact; raise sink_tokens"
            )
        if self.window is not None and not paged:
            raise ValueError("a window gives pages back; use a paged cache with it")


class CacheConfig(VisibleTokens):
    """The shape of a cache: which tokens are coded and seen, and how the codes lie in memory."""

    paged: bool = True
    page_size: int = Field(64, ge=1, le=4096)
    residual: int = Field(128, ge=1, description="capacity R of the exact window of newest tokens")
    sink_tokens: int = Field(SINK_TOKENS, ge=0, description="first tokens that stay exact for good")
    key_layout: Layout = "transposed"
    value_layout: Layout = "transposed"
    max_pages: int | None = Field(None, ge=1)
    backend: str = Field("auto", description="cpu, reference, ... or auto, the fastest that can serve the model")
    fallback: bool = Field(True, description="take the next choice where a backend cannot run or pages run out")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.residual < self.page_size:
            raise ValueError(
                f"residual ({self.residual}) is smaller than page_size ({self.page_size}): "
                "a page is sealed out of the residual window, so it must hold at least one"
            )
        self.check_visible(self.sink_tokens, paged=self.paged)
        return self


class EvalConfig(VisibleTokens):
    """`pqkv eval`: a grid of bits x mode x context over one text and one model."""

    model: str = "reference"
    dtype: Dtype = "float32"
    device: str = "cpu"
    device_map: str | None = Field(None, description="auto, balanced ...: layers spread over all devices")
    rope: Rope = Field("default", description="rotary embedding: the model's own, or one that reaches further")
    rope_factor: float | None = Field(None, gt=1, description="times the trained positions that it reaches")
    data: str = "stdlib"
    split: Split | None = None
    bos: Bos = Field("auto", description="a beginning-of-sequence token in front of every window")
    parse_special: bool = Field(False, description="control tokens where text spells them")
    chat: bool = Field(False, description="a window is one conversation in the model's chat template")
    codebooks: tuple[str, ...] = ()
    bits: tuple[float, ...] = (4,)
    recipe: Recipe = Field("pqkv", description="of the codebooks that are trained for these bits")
    scope: Scope = "head"
    codec: tuple[str, ...] = Field((), description="ways of coding by name, in place of codebooks; see pqkv codecs")
    calibration: CodecCalibration = Field(CodecCalibration(), description="the text that codecs learn from")
    context: tuple[int, ...] = (512, 2048)
    mode: tuple[Mode, ...] = ("exact-schedule",)
    chunk_size: int = Field(256, ge=1)
    decode_tokens: int = Field(64, ge=2, description="newest tokens of a window, decoded one by one in mode decode")
    coded_sinks: tuple[int, ...] = Field((0,), description="first tokens that stay exact in mode all-coded")
    score_after: int = Field(0, ge=0, description="only positions from this one on are scored")
    noise_floor: bool = Field(False, description="exact caches that differ by rounding alone, on the same windows")
    by_layer: bool = Field(False, description="also code one layer at a time, keys, values and both")
    windows: int | None = Field(8, ge=1, description="windows per context, spread evenly; 'all' for all of them")
    topk: tuple[int, ...] = (1, 5, 10)
    metrics: tuple[Metric, ...] = ALL_METRICS
    control: bool = False
    recall_form: RecallForm = Field("code", description="codes of five facts a window, or the word of one")
    seed: int = Field(0, ge=0, lt=2**31)
    allow_contaminated: bool = False
    paged: bool = True
    page_size: int = Field(64, ge=1, le=4096)
    residual: int = Field(128, ge=1)
    sink_tokens: int = Field(SINK_TOKENS, ge=0)
    key_layout: Layout = "transposed"
    value_layout: Layout = "transposed"
    max_pages: int | None = Field(None, ge=1)
    backend: str = Field("auto", description="cpu, reference, ... or auto, the fastest that can serve the model")
    fallback: bool = Field(True, description="take the next choice where a backend cannot run or pages run out")

    @field_validator("windows", mode="before")
    @classmethod
    def _all_windows(cls, windows: Any) -> Any:  # noqa: ANN401 - not validated yet
        return None if windows == "all" else windows

    @field_validator("context")
    @classmethod
    def _contexts(cls, contexts: tuple[int, ...]) -> tuple[int, ...]:
        if not contexts or min(contexts) < 2:
            raise ValueError("every context must be at least 2 tokens")
        return contexts

    @field_validator("topk")
    @classmethod
    def _topk(cls, ks: tuple[int, ...]) -> tuple[int, ...]:
        if not ks or min(ks) < 1:
            raise ValueError("topk takes positive numbers")
        return tuple(sorted(set(ks)))

    @field_validator("coded_sinks")
    @classmethod
    def _coded_sinks(cls, counts: tuple[int, ...]) -> tuple[int, ...]:
        if not counts or min(counts) < 0:
            raise ValueError("coded_sinks takes numbers of tokens, 0 for none")
        return tuple(dict.fromkeys(counts))

    @field_validator("mode", "metrics", "bits")
    @classmethod
    def _not_empty(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if not values:
            raise ValueError("at least one is needed")
        return values

    @model_validator(mode="after")
    def _check(self) -> Self:
        self.cache()
        check_rope_factor(self.rope, self.rope_factor)
        exact_only = [mode for mode in self.mode if not self.shows_exact(mode)]
        if self.codec and self.codebooks:
            raise ValueError("give codec or codebooks: a codebook file is a codec of its own")
        if not self.codebooks and not self.codec and 0 in self.bits and exact_only:
            raise ValueError(
                f"bits 0 is the exact cache: it has nothing to show in mode {exact_only[0]}; "
                "use --mode token, chunk or decode, or see what a --window does in exact-schedule"
            )
        if self.keep is not None and set(self.mode) != {"decode"}:
            raise ValueError("keep drops tokens of a prefill: use --mode decode, where there is one")
        if max(self.coded_sinks) and "all-coded" not in self.mode:
            raise ValueError("coded_sinks are the exact tokens of mode all-coded; --sink-tokens those of the others")
        if max(self.coded_sinks) >= min(self.context):
            raise ValueError(f"coded_sinks {max(self.coded_sinks)} leave nothing to code of {min(self.context)} tokens")
        if self.score_after >= min(self.context) - 1:
            raise ValueError(f"score_after {self.score_after} leaves nothing to score of {min(self.context)} tokens")
        if self.chat and self.parse_special:
            raise ValueError(
                "parse_special makes control tokens of text, and in a chat the template's are the only ones; leave "
                "--parse-special or --chat out"
            )
        if self.by_layer and not {"exact-schedule", "all-coded"} & set(self.mode):
            raise ValueError("by_layer codes single layers in one forward: use --mode exact-schedule or all-coded")
        if "decode" in self.mode and min(self.context) <= self.decode_tokens:
            raise ValueError(
                f"mode decode takes the last {self.decode_tokens} tokens of a window one by one: every context must be "
                "longer (or decode_tokens smaller)"
            )
        return self

    def shows_exact(self, mode: Mode) -> bool:
        """Whether the exact cache has anything to show in `mode`: through pages, or through a window."""
        return mode in STEPWISE or (self.window is not None and mode == "exact-schedule")

    def cache(self) -> CacheConfig:
        """The cache these settings describe."""
        names = CacheConfig.model_fields
        return CacheConfig(**{name: getattr(self, name) for name in names})


class GenerateConfig(VisibleTokens):
    """`pqkv generate`: what one model writes after one prompt on the exact cache and on coded ones."""

    model: str = "reference"
    dtype: Dtype = "float32"
    device: str = "cpu"
    device_map: str | None = Field(None, description="auto, balanced ...: layers spread over all devices")
    rope: Rope = Field("default", description="rotary embedding: the model's own, or one that reaches further")
    rope_factor: float | None = Field(None, gt=1, description="times the trained positions that it reaches")
    bos: Bos = Field("auto", description="a beginning-of-sequence token in front of the prompt")
    parse_special: bool = Field(False, description="control tokens where the prompt spells them")
    chat: bool = Field(False, description="the prompt is a user's message in the model's chat template")
    codebooks: tuple[str, ...] = ()
    bits: tuple[float, ...] = (4,)
    recipe: Recipe = Field("pqkv", description="of the codebooks that are trained for these bits")
    scope: Scope = "head"
    codec: tuple[str, ...] = Field((), description="ways of coding by name, in place of codebooks; see pqkv codecs")
    calibration: CodecCalibration = Field(CodecCalibration(), description="the text that codecs learn from")
    tokens: int = Field(256, ge=1, description="tokens to write, at most")
    ignore_end: bool = Field(False, description="go on past the token with which the model ends")
    temperature: float = Field(0.0, ge=0, description="0 takes the most likely token; above it tokens are drawn")
    seed: int = Field(0, ge=0, lt=2**31)
    paged: bool = True
    page_size: int = Field(64, ge=1, le=4096)
    residual: int = Field(128, ge=1)
    sink_tokens: int = Field(SINK_TOKENS, ge=0)
    key_layout: Layout = "transposed"
    value_layout: Layout = "transposed"
    max_pages: int | None = Field(None, ge=1)
    backend: str = Field("auto", description="cpu, reference, ... or auto, the fastest that can serve the model")
    fallback: bool = Field(True, description="take the next choice where a backend cannot run or pages run out")

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_rope_factor(self.rope, self.rope_factor)
        self.evaluation()
        self.cache()
        return self

    @property
    def codes_anything(self) -> bool:
        """Whether any cache beside the exact one holds codes."""
        return bool(self.codebooks or self.codec or any(self.bits))

    def evaluation(self) -> EvalConfig:
        """An evaluation that codes with the same codebooks or codecs: what trains or loads them takes one."""
        names = ("model", "dtype", "device", "device_map", "rope", "rope_factor", "bos", "parse_special")
        codes = ("codebooks", "bits", "recipe", "scope", "codec", "calibration", "sink_tokens", "page_size", "residual")
        return EvalConfig(**{name: getattr(self, name) for name in (*names, *codes)}, mode=("decode",))

    def cache(self) -> CacheConfig:
        """The cache these settings describe."""
        return CacheConfig(**{name: getattr(self, name) for name in CacheConfig.model_fields})


LARGEST_CELL = 2**26  # tokens of a sequence, or sequences: numbers of pages stay far below 32 bits


class BenchConfig(Settings):
    """`pqkv bench`: a grid of code shapes x batch x context on one attention geometry, random numbers in the cache."""

    backend: str = "auto"
    device: Literal["cpu", "cuda"] | None = Field(None, description="where the backend runs, unless given")
    fallback: bool = True
    lengths: tuple[int, ...] = (128, 512, 1024, 2048, 4096, 8192, 32768)
    batch: tuple[int, ...] = (1,)
    ragged: bool = Field(False, description="sequences of a batch from an eighth of the length up to it")
    heads: int = Field(32, ge=1)
    kv_heads: int = Field(8, ge=1)
    head_dim: int = Field(128, ge=1)
    bits: tuple[float, ...] = (4, 2)
    num_subspaces: int | None = Field(None, ge=1)
    nbits: int | None = Field(None, ge=NBITS_RANGE[0], le=NBITS_RANGE[1])
    served: tuple[Served, ...] = Field(
        SERVED,
        description="what a step has beside product codes: int8 centroids, frame and turning mean of keys, gains of "
        "values, their Hadamard turn and universal codebook",
    )
    key_layout: Layout = "transposed"
    value_layout: Layout = "transposed"
    page_size: int = Field(64, ge=1, le=4096)
    residual: int = Field(128, ge=1)
    sink_tokens: int = Field(SINK_TOKENS, ge=0)
    window: int | None = Field(None, ge=1)
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    model: str | None = Field(None, description="heads as in this shape; end to end, the model itself")
    end_to_end: bool = False
    breakdown: bool = Field(False, description="the parts of a decoding step, and of encoding, instead of a race")
    new_tokens: int = Field(320, ge=1, description="decoded end to end, through several flushes")
    repeats: int = Field(21, ge=1)
    threads: int | None = Field(None, ge=1)
    seed: int = Field(0, ge=0, lt=2**31)

    @field_validator("lengths", "batch")
    @classmethod
    def _positive(cls, values: tuple[int, ...]) -> tuple[int, ...]:
        if not values or min(values) < 1:
            raise ValueError("at least one is needed, and every one must be positive")
        if max(values) > LARGEST_CELL:
            raise ValueError(f"{max(values)} is beyond the {LARGEST_CELL} that a cell may have")
        return values

    @model_validator(mode="after")
    def _check(self) -> Self:
        CacheConfig(page_size=self.page_size, residual=self.residual)
        CodeShape(num_subspaces=self.num_subspaces, nbits=self.nbits)
        if self.breakdown and self.end_to_end:
            raise ValueError("breakdown and end_to_end are two kinds of bench; ask for one")
        if not self.bits and self.num_subspaces is None:
            raise ValueError("bits: at least one is needed")
        if self.heads % self.kv_heads:
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        return self


def digest_of(value: Any) -> str:  # noqa: ANN401 - any JSON value
    """Twelve hexadecimal digits of SHA-256 over the canonical JSON of `value`."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def read_config_file(path: Path) -> dict[str, Any]:
    """Read a TOML or JSON configuration into a dict; raise `ConfigError` when it is neither."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the configuration file {path}: {error}") from error
    try:
        values = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        kind = "JSON" if path.suffix == ".json" else "TOML"
        raise ConfigError(f"{path} is not valid {kind}: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold keys and values, not {type(values).__name__}")
    return {str(key).replace("-", "_"): value for key, value in values.items()}


def _first_problem(error: ValidationError, known: list[str], source: str) -> str:
    """The first of what is wrong in a line, and how much more is."""
    problem, *others = error.errors()
    more = f" (and {len(others)} more)" if others else ""
    key = ".".join(part for part in problem["loc"] if isinstance(part, str))
    if problem["type"] == "extra_forbidden":
        near = get_close_matches(key, known, 1)
        meant = f"did you mean '{near[0]}'? " if near else ""
        return f"{source}: unknown key '{key}'; {meant}known keys: {', '.join(sorted(known))}{more}"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "missing":
        message = "is required and not given"
    elif problem["type"].endswith(("_type", "_parsing")):
        message = f"{message}, not {shortened(problem['input'])}"
    return f"{source}: {key}: {message}{more}" if key else f"{source}: {message}{more}"
