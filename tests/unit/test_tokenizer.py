"""Tokenizers against published ids and their packages' own decoding, and streaming that never cuts a character."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtimes.errors import BadArtifact, Missing, WrongCall
from runtimes.tokenizer import PILE_FILE, Decoder, Tokenizer, byte_level_alphabet, kind_for, open_tokenizer

SENTENCE = "Today is a beautiful day. 今天是美好的一天。"
SENTENCE_IDS = [33520, 4600, 332, 59219, 21509, 47, 33]
SENTENCE_IDS += [10381, 11639, 13091, 15597, 11685, 14734, 10250, 11639, 10080]
opened = cache(open_tokenizer)
MIXED = "naïve café 😀🦜 日本語 \t\n    end"


@pytest.fixture(scope="module")
def pile_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small byte-level BPE in the file format and with the conventions of GPT-NeoX's 20B."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    folder = tmp_path_factory.mktemp("pile")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([SENTENCE, MIXED], trainer)
    tokenizer.add_tokens([AddedToken("    ", normalized=False)])
    tokenizer.save(str(folder / PILE_FILE))
    return folder


@pytest.fixture(params=["bytes", "world", "pile"])
def tokenizer(request: pytest.FixtureRequest, pile_folder: Path) -> Tokenizer:
    return open_tokenizer(request.param, pile_folder)


def stream(tokenizer: Tokenizer, ids: list[int]) -> tuple[list[str], str]:
    decoder = Decoder(tokenizer)
    return [decoder.feed(token) for token in ids], decoder.flush()


def test_world_gives_the_published_ids() -> None:
    assert open_tokenizer("world").encode(SENTENCE) == SENTENCE_IDS


def test_world_agrees_with_the_rwkv_package() -> None:
    import rwkv
    from rwkv.rwkv_tokenizer import TRIE_TOKENIZER

    theirs = TRIE_TOKENIZER(str(Path(next(iter(rwkv.__path__))) / "rwkv_vocab_v20230424.txt"))
    ours = opened("world")
    assert ours.encode(MIXED) == theirs.encode(MIXED)
    for token in range(1, 65530, 7):
        assert ours.spell(token) == theirs.decodeBytes([token])


def test_bytes_are_the_utf8_bytes_plus_one() -> None:
    assert open_tokenizer("bytes").encode("Aé") == [66, 196, 170]
    assert open_tokenizer("bytes").spell(256) == b"\xff"


def test_pile_agrees_with_the_package_that_reads_the_file(pile_folder: Path) -> None:
    from tokenizers import Tokenizer as Package

    theirs = Package.from_file(str(pile_folder / PILE_FILE))
    ours = open_tokenizer("pile", pile_folder)
    ids = theirs.encode(MIXED).ids
    assert ours.encode(MIXED) == ids
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=False) == MIXED


def test_the_byte_level_letters_are_the_packages() -> None:
    from tokenizers import pre_tokenizers

    letters = byte_level_alphabet()
    assert set(letters) == set(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(letters.values()) == list(range(256))
    assert letters["Ġ"] == ord(" ")


def test_decoding_undoes_encoding(tokenizer: Tokenizer) -> None:
    for text in ("", SENTENCE, MIXED, "\x00"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


@given(text=st.text(max_size=40))
def test_any_text_survives_world_and_bytes(text: str) -> None:
    for kind in ("bytes", "world"):
        tokenizer = opened(kind)
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_streaming_never_emits_part_of_a_character(tokenizer: Tokenizer) -> None:
    pieces, rest = stream(tokenizer, tokenizer.encode(MIXED))
    assert "".join(pieces) == MIXED
    assert rest == ""
    assert not any("\ufffd" in piece for piece in pieces)


def test_streaming_emits_a_word_as_soon_as_it_is_there() -> None:
    pieces, _ = stream(opened("world"), SENTENCE_IDS)
    assert pieces[:4] == ["Today", " is", " a", " beautiful"]


def test_a_stream_cut_within_a_character_says_so_once() -> None:
    tokenizer = open_tokenizer("bytes")
    pieces, rest = stream(tokenizer, tokenizer.encode("😀")[:3])
    assert "".join(pieces) == ""
    assert rest == "\ufffd"


def test_an_invalid_byte_does_not_swallow_what_follows() -> None:
    tokenizer = open_tokenizer("bytes")
    pieces, rest = stream(tokenizer, [0xF0 + 1, *tokenizer.encode("ab")])
    assert "".join(pieces) + rest == "\ufffdab"


def test_end_of_text_spells_nothing_and_padding_ids_are_visible(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode([0]) == ""
    assert tokenizer.decode([65535]) == "\ufffd"


@pytest.mark.parametrize(
    ("vocab", "kind"),
    [
        (256, "bytes"),
        (257, "bytes"),
        (260, "bytes"),
        (65529, "world"),
        (65536, "world"),
        (50277, "pile"),
        (50304, "pile"),
        (261, "none"),
        (32000, "none"),
    ],
)
def test_vocabulary_size_tells_the_tokenizer(vocab: int, kind: str) -> None:
    assert kind_for(vocab) == kind


def test_none_is_refused_with_a_way_out() -> None:
    with pytest.raises(WrongCall) as caught:
        open_tokenizer("none")
    assert "token ids" in str(caught.value.hint)


def test_an_unknown_kind_gets_a_suggestion() -> None:
    with pytest.raises(WrongCall, match="'wrld'") as caught:
        open_tokenizer("wrld")
    assert "'world'" in str(caught.value.hint)


def test_pile_without_its_file_is_a_bad_artifact(tmp_path: Path) -> None:
    with pytest.raises(BadArtifact, match=PILE_FILE):
        open_tokenizer("pile", tmp_path)


@pytest.mark.parametrize(("kind", "module"), [("world", "pyrwkv_tokenizer"), ("pile", "tokenizers")])
def test_a_package_that_is_not_installed_is_named(
    kind: str, module: str, pile_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(Missing, match=module) as caught:
        open_tokenizer(kind, pile_folder)
    assert "pip install" in str(caught.value.hint)


def test_text_that_is_not_unicode_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(WrongCall, match="character 1"):
        tokenizer.encode("a\udcff")
