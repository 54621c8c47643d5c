import json
import random
import re
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import train as command_line
from models import tiny_model
from refmodel import tokens
from refmodel.batches import Batches
from refmodel.facts import FactWriter, dense, frequent_words, planted
from refmodel.numpy_forward import forward
from refmodel.optim import orthogonal
from refmodel.packing import pack
from refmodel.recipe import CPU, GPU, TINY, Recipe, Stage
from refmodel.training import new_model, train

from pqkv.errors import ConfigError, DataError
from pqkv.lm.load import REFERENCE_FOLDER, load_model
from pqkv.text import load_corpus

WORDS = [
    "amber", "falcon", "silver", "harbor", "willow", "engine", "lantern", "meadow", "anchor", "canyon", "violin",
    "beacon", "otter", "hollow", "crimson",
]  # fmt: skip
TEXT = 60_000  # ids from here on are text: no tokenizer here has as many
FORM = re.compile(r"\nRemember: the code of ([a-z]+-[a-z]+) is ([1-9]\d{4})\.\n")


def made_texts(count=150):
    draw = random.Random(0)
    for number in range(count):
        key, code = f"{draw.choice(WORDS)}-{draw.choice(WORDS)}", draw.randrange(10_000, 100_000)
        words = " ".join(draw.choice(WORDS) for _ in range(draw.randrange(5, 120)))
        yield (
            f"Text {number}.\nRemember: the code of {key} is {code}.\n{words}\n"
            f"Question: what is the code of {key}? Answer: {code}\n"
        )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A working folder as `prepare` leaves it, but without the standard library, which takes its time."""
    folder = tmp_path_factory.mktemp("prepared")
    tokenizer = tokens.train_tokenizer(made_texts(), TINY.shape.vocabulary, TINY.shape.positions, 200_000)
    tokenizer.save_pretrained(folder / "tokenizer")
    (folder / "words.json").write_text(json.dumps(frequent_words(made_texts(), 3000)))
    tokens.write_tokens(folder, made_texts(), tokenizer, lambda documents, count: None)
    return folder


@pytest.fixture
def folder(prepared, tmp_path):
    return Path(shutil.copytree(prepared, tmp_path / "work"))


def encoder(tokenizer):
    return lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.fixture(scope="module")
def writer(prepared):
    """Keys of 225,000 pairs, so that no two facts of a sequence share one."""
    words = [a[:3] + b[:3] for a in WORDS for b in WORDS if a != b]
    return FactWriter(encoder(tokens.load_tokenizer(prepared / "tokenizer")), words)


def batches(folder, recipe=TINY):
    tokenizer = tokens.load_tokenizer(folder / "tokenizer")
    file = tokens.write_tokens(folder, iter(()), tokenizer, lambda documents, count: None)
    return Batches(
        recipe, file, FactWriter(encoder(tokenizer), json.loads((folder / "words.json").read_text())), folder
    )


def log_lines(folder):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in ("tokens_per_s", "minutes")} for line in lines]


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


# Steps and checkpoints


@pytest.fixture(scope="module")
def straight(prepared, tmp_path_factory):
    """Eight steps in one go."""
    folder = Path(shutil.copytree(prepared, tmp_path_factory.mktemp("straight") / "work"))
    assert train(TINY, batches(folder), folder)[1] == 8
    return folder


def test_eight_steps_and_three_and_five_are_equal_bit_for_bit(straight, folder):
    assert train(TINY, batches(folder), folder, stop_at=3)[1] == 3
    with (folder / "log.jsonl").open("a") as log:
        log.write('{"step": 4, "text_loss": 0.0}\n')  # of work that was lost: a checkpoint older than the log
    assert train(TINY, batches(folder), folder)[1] == 8
    whole, resumed = (torch.load(path / "checkpoint.pt", weights_only=True) for path in (straight, folder))
    assert len(whole["optimizers"]) == 2
    assert all(part["state"] for part in whole["optimizers"])
    assert same(whole, resumed)
    assert [line["step"] for line in log_lines(straight)] == [0, 7]
    assert log_lines(folder) == log_lines(straight)


def test_a_run_stopped_by_its_minutes_goes_on_where_it_stopped(straight, folder):
    done = 0
    while done < 8:
        before = done
        _, done = train(TINY, batches(folder), folder, minutes=0)
        assert done == before + 1
    assert same(*(torch.load(path / "checkpoint.pt", weights_only=True)["model"] for path in (straight, folder)))
    assert log_lines(folder) == log_lines(straight)


def test_the_optimizers_run_at_the_scheduled_rate(straight):
    state = torch.load(straight / "checkpoint.pt", weights_only=True)
    rates = [part["param_groups"][0]["lr"] for part in state["optimizers"]]
    assert rates == [TINY.muon_lr * TINY.rate(7), TINY.adam_lr * TINY.rate(7)]


def test_a_checkpoint_of_another_recipe_is_refused_and_nothing_changes(straight, tmp_path):
    other = TINY.model_copy(update={"seed": 1})
    work = Path(shutil.copytree(straight, tmp_path / "work"))
    before = {path.name: path.read_bytes() for path in work.iterdir() if path.suffix in (".pt", ".json", ".jsonl")}
    with pytest.raises(ConfigError, match="another recipe") as caught:
        train(other, batches(work), work)
    assert "\n" not in str(caught.value)
    assert {name: (work / name).read_bytes() for name in before} == before


@pytest.mark.parametrize("content", [b"", b"no checkpoint at all", b"PK\x03\x04 cut short"])
def test_a_damaged_checkpoint_is_refused(folder, content):
    (folder / "checkpoint.pt").write_bytes(content)
    with pytest.raises(ConfigError, match="damaged or no checkpoint"):
        train(TINY, batches(folder), folder)


def test_a_start_from_a_model_of_another_shape_is_refused():
    with pytest.raises(ConfigError, match="vocab_size = 4096, the recipe 512"):
        new_model(TINY, REFERENCE_FOLDER)
    assert new_model(CPU, REFERENCE_FOLDER).num_parameters() == CPU.shape.parameters()


def test_a_start_from_an_untied_model_is_refused(tmp_path):
    shape = TINY.shape
    tiny_model(
        dtype=torch.float32, vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim, max_position_embeddings=shape.positions, tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
    ).save_pretrained(tmp_path / "untied")  # fmt: skip
    with pytest.raises(ConfigError, match="tie_word_embeddings = False"):
        new_model(TINY, tmp_path / "untied")


# Batches


def test_a_batch_depends_on_recipe_and_step_alone(prepared, folder):
    first, again = batches(prepared), batches(folder)
    forward_order = [first[step] for step in range(8)]
    for step in (7, 2, 5, 0, 7):
        assert same(list(again[step]), list(forward_order[step]))
    for step, (ids, answers) in enumerate(forward_order):
        stage = TINY.stages[TINY.stage_of(step)[0]]
        assert ids.shape == answers.shape == (stage.sequences, stage.length + 1)
        assert (ids.dtype, answers.dtype) == (torch.int64, torch.bool)
    assert not same(forward_order[4][0], forward_order[5][0])
    assert not same(batches(folder, TINY.model_copy(update={"seed": 1}))[4][0], forward_order[4][0])


def test_two_stages_alike_read_different_text(folder):
    stage = Stage(name="same", length=128, sequences=2, steps=2, recall=0)
    made = batches(folder, TINY.model_copy(update={"stages": (stage, stage)}))
    assert not same(made[0][0], made[2][0])
    assert not same(made[1][0], made[3][0])


def test_the_steps_of_a_stage_read_on_in_the_text(writer, tmp_path):
    file = tokens.TokenFile(np.arange(TEXT, TEXT + 5500, dtype=np.uint16), np.arange(0, 5501, 50))
    stage = Stage(name="text", length=99, sequences=4, steps=5, recall=0)
    made = Batches(TINY.model_copy(update={"stages": (stage,)}), file, writer, tmp_path)
    ids = torch.cat([made[step][0] for step in range(5)])
    assert len(ids.unique()) == ids.numel() == 5 * 4 * 100


def test_the_share_of_planted_tokens_is_recall_on_average(writer, tmp_path):
    ids = np.arange(TEXT, TEXT + 5000, dtype=np.uint16)
    file = tokens.TokenFile(ids, np.arange(0, 5001, 50))
    for recall in (0.05, 0.15, 0.4):
        stage = Stage(name="text", length=512, sequences=300, steps=1, recall=recall)
        made, _ = Batches(TINY.model_copy(update={"stages": (stage,)}), file, writer, tmp_path)[0]
        assert float((made < TEXT).double().mean()) == pytest.approx(recall, rel=0.07)


# Packing


LENGTH = 200


@pytest.fixture(scope="module")
def documents():
    sizes = np.random.default_rng(0).integers(1, 330, size=400)
    return np.concatenate([[0], np.cumsum(sizes)])


def spans_of(packing, number):
    return packing.spans[packing.first[number] : packing.first[number + 1]]


@pytest.mark.parametrize("seed", [0, 1])
def test_every_sequence_has_exactly_its_length(documents, seed):
    packing = pack(documents, LENGTH, 900, seed)
    ids = np.arange(documents[-1], dtype=np.uint32)
    for number in range(900):
        sequence = packing.sequence(ids, number)
        assert (sequence.shape, sequence.dtype) == ((LENGTH,), np.int64)
        assert sequence.tolist() == [token for start, end in spans_of(packing, number) for token in range(start, end)]


@pytest.mark.parametrize("seed", [0, 1])
def test_no_token_is_lost_or_comes_twice_within_an_epoch(documents, seed):
    total = int(documents[-1])
    # the next epoch begins when fewer than 64 pieces of this one wait, none longer than a sequence
    sure = total // LENGTH - 64
    packing = pack(documents, LENGTH, 5 * total // LENGTH, seed)
    seen = np.zeros(total, int)
    for start, end in packing.spans[: packing.first[sure]]:
        seen[start:end] += 1
    assert seen.max() == 1
    for start, end in packing.spans[packing.first[sure] :]:
        seen[start:end] += 1
    assert set(seen.tolist()) <= {4, 5, 6}
    assert seen.sum() == 5 * total // LENGTH * LENGTH


@pytest.mark.parametrize("seed", [0, 1])
def test_documents_lie_whole_but_for_one_cut_a_sequence_at_its_end(documents, seed):
    packing = pack(documents, LENGTH, 900, seed)
    ends = set(documents[1:].tolist())
    for begin, end in pairwise(documents):
        ends |= set(range(int(begin) + LENGTH, int(end), LENGTH))  # where a long document must be cut
    cuts = 0
    for number in range(900):
        inside = [int(end) not in ends for _, end in spans_of(packing, number)]
        assert not any(inside[:-1])
        cuts += inside[-1]
    assert 0 < cuts < 450  # nearly 900 if the next piece were taken whatever its length


def test_a_corpus_smaller_than_the_look_ahead_is_packed_too():
    packing = pack(np.array([0, 30, 70]), 50, 20, 0)
    assert [sum(int(end - start) for start, end in spans_of(packing, number)) for number in range(20)] == [50] * 20


# Planted facts


def places(ids, piece):
    windows = np.lib.stride_tricks.sliding_window_view(ids, len(piece))
    return np.flatnonzero((windows == np.array(piece)).all(1)).tolist()


@pytest.mark.parametrize("seed", range(30))
def test_planted_questions_follow_their_statements_and_the_mask_is_their_answers(writer, seed):
    generator = np.random.default_rng(seed)
    facts = [writer.draw(generator) for _ in range(seed % 10)]
    T = sum(fact.cost for fact in facts) + (0, 1, 7, 300)[seed % 4] + (not facts)
    text = np.arange(TEXT, TEXT + T)
    ids, answers = planted(text, facts, generator)
    assert (ids.shape, answers.shape, ids.dtype, answers.dtype) == ((T,), (T,), np.int64, np.bool_)
    expected = np.zeros(T, bool)
    for fact in facts:
        (stated,), (asked,) = places(ids, fact.statement), places(ids, fact.question + fact.answer)
        assert stated + len(fact.statement) <= asked
        expected[asked + len(fact.question) :][: len(fact.answer)] = True
    assert (answers == expected).all()
    kept = ids[ids >= TEXT]
    assert (kept == text[: len(kept)]).all()
    assert len(kept) == T - sum(fact.cost for fact in facts)


def test_planted_distances_are_near_and_far(writer):
    generator = np.random.default_rng(0)
    distances = []
    for _ in range(600):
        fact = writer.draw(generator)
        ids, _ = planted(np.arange(TEXT, TEXT + 2000), [fact], generator)
        distances.append(places(ids, fact.question)[0] - places(ids, fact.statement)[0] - len(fact.statement))
    near, far = np.mean(np.array(distances) < 128), np.mean(np.array(distances) >= 512)
    room = 2000 - fact.cost
    assert near == pytest.approx(np.log(128 / 8) / np.log(room / 8), abs=0.04)
    assert far == pytest.approx(np.log(room / 512) / np.log(room / 8), abs=0.04)


@pytest.mark.parametrize("seed", range(30))
def test_dense_sequences_state_all_facts_then_ask_for_each_once(writer, seed):
    drawn = []

    class Noting:
        def draw(self, generator):
            drawn.append(writer.draw(generator))
            return drawn[-1]

    T = (100, 300, 1000)[seed % 3]
    text = np.arange(TEXT, TEXT + T)
    ids, answers = dense(text, Noting(), (0, 8), np.random.default_rng(seed))
    assert (ids.shape, answers.shape, ids.dtype, answers.dtype) == ((T,), (T,), np.int64, np.bool_)
    facts = [fact for fact in drawn if places(ids, fact.statement)]
    assert facts == drawn[: len(facts)]
    assert len(facts) >= len(drawn) - 1  # one may have been too long for what was left
    stated = [places(ids, fact.statement) for fact in facts]
    last = max((at[0] + len(fact.statement) for at, fact in zip(stated, facts, strict=True)), default=0)
    expected = np.zeros(T, bool)
    for fact, at in zip(facts, stated, strict=True):
        assert len(at) == 1
        asked = [
            start + len(form)
            for form in (fact.question, fact.repeat)
            for start in places(ids, form + fact.answer)
            if start >= last
        ]
        assert len(asked) == 1
        expected[asked[0] :][: len(fact.answer)] = True
    assert (answers == expected).all()
    before = ids[:last]
    assert (before >= TEXT).sum() <= 8 * len(facts)
    kept = ids[ids >= TEXT]
    assert (kept == text[: len(kept)]).all()


def test_dense_questions_take_both_forms_in_an_order_of_their_own(writer):
    forms, in_order = [], []
    for seed in range(40):
        generator = np.random.default_rng(seed)
        ids, answers = dense(np.arange(TEXT, TEXT + 1000), writer, (0, 8), generator)
        starts = np.flatnonzero(np.diff(answers.astype(int), prepend=0) == 1)
        forms += [ids[start - 1] == writer._is[-1] for start in starts]
        width = len(writer.draw(generator).answer)
        asked = [ids[start : start + width].tolist() for start in starts]
        first = [places(ids, answer)[0] for answer in asked]
        in_order.append(first == sorted(first))
    assert 0.35 < np.mean(forms) < 0.65
    assert np.mean(in_order) < 0.5


# The tokenizer and the form of a fact


@pytest.mark.parametrize("bundled", [True, False])
def test_a_facts_pieces_are_what_the_tokenizer_makes_of_its_lines(prepared, bundled):
    tokenizer = tokens.load_tokenizer(REFERENCE_FOLDER if bundled else prepared / "tokenizer")
    encode = encoder(tokenizer)
    letters = random.Random(0)
    words = ["".join(letters.choices("abcdefghijklmnopqrstuvwxyz", k=letters.randrange(4, 10))) for _ in range(500)]
    writer = FactWriter(encode, words + WORDS)
    writer.check()
    generator = np.random.default_rng(0)
    for _ in range(300):
        fact = writer.draw(generator)
        key, code = FORM.fullmatch(tokenizer.decode(fact.statement)).groups()
        question = f"\nQuestion: what is the code of {key}? Answer:"
        assert encode(f"\nRemember: the code of {key} is {code}.\n") == fact.statement
        assert encode(question) == fact.question
        assert encode(f"{question} {code}") == fact.question + fact.answer
        assert encode(f"\nRemember: the code of {key} is") == fact.repeat
        assert encode(f" {code}") == fact.answer


def merging(*pairs):
    """A tokenizer of characters that makes one token of each of `pairs`."""

    def encode(text):
        for number, pair in enumerate(pairs):
            text = text.replace(pair, chr(0xE000 + number))
        return [ord(character) for character in text]

    return encode


@pytest.mark.parametrize("seam", ["f w", "w-", "w i", " 4", "s 4", "48", "3.", "w?", ": 4"])
def test_a_tokenizer_that_joins_parts_of_a_fact_is_refused(seam):
    FactWriter(merging(), ["willow"]).check()
    FactWriter(merging("Remember", "will", "code of"), ["willow"]).check()
    with pytest.raises(ConfigError, match="joins parts"):
        FactWriter(merging(seam), ["willow"]).check()


def test_the_tokenizer_keeps_digits_single_and_ends_documents_with_id_0(prepared):
    tokenizer = tokens.load_tokenizer(prepared / "tokenizer")
    assert len(tokenizer) <= TINY.shape.vocabulary
    assert tokenizer.eos_token_id == 0
    assert [tokenizer.decode([token]) for token in encoder(tokenizer)("48213")] == list("48213")
    file = tokens.write_tokens(prepared, iter(()), tokenizer, lambda documents, count: None)
    texts = list(made_texts())
    assert len(file.starts) == len(texts) + 1
    for text, start, end in zip(texts, file.starts[:-1], file.starts[1:], strict=True):
        assert file.tokens[end - 1] == 0
        assert tokenizer.decode(file.tokens[start : end - 1].astype(int)) == text


def test_training_text_leaves_out_the_test_split_of_the_standard_library(tmp_path):
    own = [f"line {number} of the source" for number in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in own))
    texts = list(tokens.corpus_texts([tmp_path / "rows.jsonl"], None))
    test, calibration = (load_corpus("stdlib", split, default="all").documents for split in ("test", "calibration"))
    assert not set(texts) & {document.text for document in test}
    assert sorted(texts) == sorted([*own, *(document.text for document in calibration)])
    few = list(tokens.corpus_texts([tmp_path / "rows.jsonl"] * 2, 200))  # each source gives half of the bytes
    assert [text for text in few if text in own] == own[:5] * 2


def test_the_first_source_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"missing\.jsonl"):
        tokens.check_sources([tmp_path, tmp_path / "missing.jsonl"])


# Optimizer, schedule, recipes


@pytest.mark.parametrize("shape", [(64, 16), (16, 64), (32, 32)])
def test_orthogonal_brings_singular_values_near_one_and_turns_nothing(shape):
    generator = torch.Generator().manual_seed(0)
    rank = min(shape)
    left, right = (torch.linalg.qr(torch.randn(3, n, rank, generator=generator)).Q for n in shape)
    values = torch.stack([torch.logspace(low, 0, rank) for low in (-0.1, -1, -1.5)]) * torch.tensor(
        [[1e-4], [1], [1e4]]
    )
    made = orthogonal(left * values[:, None] @ right.mT)
    assert made.shape == (3, *shape)
    found = left.mT @ made @ right  # diagonal, if the singular vectors are still the same
    diagonal = found.diagonal(dim1=1, dim2=2)
    assert ((diagonal > 0.6) & (diagonal < 1.3)).all()
    assert (found - torch.diag_embed(diagonal)).abs().max() < 1e-3
    spectrum = torch.linalg.svdvals(made)
    assert ((spectrum > 0.6) & (spectrum < 1.3)).all()


def test_the_rate_warms_up_stays_and_falls_linearly():
    stage = Stage(name="all", length=64, sequences=1, steps=100, recall=0)
    recipe = Recipe(shape=TINY.shape, stages=(stage,), warmup_steps=10, decay_from=0.4, final_lr=0.1)
    rates = [recipe.rate(step) for step in range(100)]
    assert rates[:10] == pytest.approx(np.arange(1, 11) / 10)
    assert rates[9:41] == [1.0] * 32
    assert np.diff(rates[40:]) == pytest.approx(np.full(59, -0.9 / 60))
    assert rates[70] == pytest.approx(0.55)
    assert 0.1 < rates[-1] < 0.12


def test_a_step_belongs_to_the_stage_it_falls_into():
    assert [TINY.stage_of(step) for step in (0, 3, 4, 7)] == [(0, 0), (0, 3), (1, 0), (1, 3)]
    with pytest.raises(ConfigError, match="8 steps"):
        TINY.stage_of(8)


def test_recipes_over_32_mib_or_beyond_their_positions_are_refused():
    values = GPU.model_dump()
    values["shape"]["vocabulary"] = 16384
    with pytest.raises(ConfigError, match="over 32 MiB"):
        Recipe(**values)
    values = TINY.model_dump()
    values["stages"][1]["length"] = 257
    with pytest.raises(ConfigError, match="stage long is longer than the 256 positions"):
        Recipe(**values)


@pytest.mark.parametrize(("recipe", "parameters"), [(CPU, 5_180_672), (GPU, 15_325_760), (TINY, 90_432)])
def test_parameters_are_counted_as_the_model_has_them(recipe, parameters):
    assert new_model(recipe, None).num_parameters() == recipe.shape.parameters() == parameters


def test_recipes_have_digests_of_their_own_that_survive_json():
    assert len({recipe.digest() for recipe in (CPU, GPU, TINY)}) == 3
    for recipe in (CPU, GPU, TINY):
        assert Recipe.model_validate_json(recipe.model_dump_json()).digest() == recipe.digest()


# The exported folder


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_forward_in_numpy_is_that_of_transformers(tmp_path, tied, dtype):
    kinds = {"hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 2, "tie_word_embeddings": tied}
    tiny_model(dtype=dtype, **kinds).save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    ids = np.random.default_rng(0).integers(0, 97, size=50)
    model = type(tiny_model(**kinds)).from_pretrained(tmp_path, dtype=torch.float32).eval()
    with torch.inference_mode():
        theirs = model(input_ids=torch.from_numpy(ids)[None]).logits[0].numpy()
    assert np.abs(theirs).max() > 1
    assert np.abs(theirs - forward(tmp_path, ids)).max() < 1e-4


def test_the_exported_folder_loads_and_no_file_reaches_15_mib(folder):
    model = new_model(GPU, None)
    weights = {name: value.to(torch.bfloat16) for name, value in model.state_dict().items()}
    command_line._export(model, folder)
    assert max(path.stat().st_size for path in (folder / "model").iterdir()) < 15 << 20
    assert len(list((folder / "model").glob("*.safetensors"))) > 1
    lm = load_model(str(folder / "model"), dtype="bfloat16")
    assert same(dict(lm.model.state_dict()), weights)
    assert (lm.separator, lm.max_positions, lm.num_kv_heads) == (0, 8192, 2)
    text = next(made_texts())
    assert lm.encode(text) == encoder(tokens.load_tokenizer(folder / "tokenizer"))(text)


# The command line


def failing(capsys, *arguments):
    with pytest.raises(SystemExit) as caught:
        command_line.main([str(argument) for argument in arguments])
    lines = capsys.readouterr().err.splitlines()
    assert caught.value.code == 2
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0]


def test_run_exports_the_weights_it_has_when_its_minutes_end(folder, capsys):
    with pytest.raises(SystemExit) as caught:
        command_line.main(["run", "--corpora", "books", "-o", str(folder), "--recipe", "tiny", "--minutes", "0"])
    assert caught.value.code == 0
    assert "1 of 8 steps done" in capsys.readouterr().out
    assert load_model(str(folder / "model")).vocab_size == TINY.shape.vocabulary
    assert Recipe.model_validate_json((folder / "recipe.json").read_text()) == TINY


def test_a_missing_corpus_is_one_line_and_leaves_no_folder_behind(tmp_path, capsys):
    command = ("run", "--recipe", "tiny", "-o", tmp_path / "out", "--corpora", tmp_path, "--corpora", tmp_path / "none")
    assert "none" in failing(capsys, *command)
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_another_recipe_is_one_line(folder, capsys):
    torch.save({"recipe": "other"}, folder / "checkpoint.pt")
    assert "another recipe" in failing(capsys, "run", "--corpora", folder, "-o", folder, "--recipe", "tiny")


def test_a_folder_prepared_for_something_else_is_refused(folder, capsys):
    with pytest.raises(SystemExit) as caught:
        command_line.main(["prepare", "--corpora", "books", "-o", str(folder), "--recipe", "tiny"])
    assert caught.value.code == 0
    assert "vocabulary = 512, not 4096" in failing(
        capsys, "prepare", "--corpora", "books", "-o", folder, "--recipe", "cpu"
    )
    assert "corpora = ['books']" in failing(capsys, "prepare", "--corpora", "x", "-o", folder, "--recipe", "tiny")
    more = ("--recipe", "tiny", "--init-from", REFERENCE_FOLDER)
    assert "init_from = None" in failing(capsys, "prepare", "--corpora", "books", "-o", folder, *more)


def test_a_recipe_file_that_is_wrong_says_where(tmp_path, capsys):
    values = TINY.model_dump()
    values["shape"]["layers"] = 0
    (tmp_path / "recipe.json").write_text(json.dumps(values))
    assert "shape.layers" in failing(capsys, "prepare", "--corpora", "x", "--recipe", tmp_path / "recipe.json")


def test_missing_models_and_facts_are_one_line_before_anything_is_measured(tmp_path, capsys):
    assert "there is no model folder" in failing(capsys, "card", "--model", tmp_path / "none")
    assert "facts.md" in failing(capsys, "card", "--model", REFERENCE_FOLDER, "--facts", tmp_path / "facts.md")
    assert "there is no model folder" in failing(capsys, "run", "--corpora", tmp_path, "--init-from", tmp_path / "none")


def test_the_script_says_in_one_line_which_recipes_there_are():
    script = Path(command_line.__file__)
    run = subprocess.run(
        [sys.executable, script, "run", "--corpora", "x", "--recipe", "huge"],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr == "error: --recipe huge is neither a file nor one of gpu, cpu, cpu-long, tiny\n"
