"""`keywise align`, `translate`, `transcribe` and `tune --alignments` on tiny models."""

from __future__ import annotations

import json
import wave

import numpy as np
import pytest
import torch

import keywise as kw
from keywise.alignment import AlignmentHeads
from tests.alignment.models import draw_dictionary_pairs, make_dictionary_translator, make_translator
from tests.alignment.models import make_tokenizer as make_letter_tokenizer
from tests.support.command_line import run
from tests.support.speech import make_whisper, write_ct2_folder

pytestmark = pytest.mark.usefixtures("own_cache", "one_torch_thread")


@pytest.fixture(autouse=True)
def same_threads_afterwards():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    kw.set_num_threads(None)


@pytest.fixture(scope="module")
def translator(tmp_path_factory):
    """Write the folder of the translator whose alignment is planted."""
    folder = tmp_path_factory.mktemp("models") / "dictionary"
    model, tokenizer = make_dictionary_translator()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Write pairs, their gold links, and the links that an aligner should write."""
    folder = tmp_path_factory.mktemp("pairs")
    pairs = draw_dictionary_pairs(12)
    lines = [f"{' '.join(source)} ||| {' '.join(target)}" for source, target, _ in pairs]
    gold = [" ".join(f"{source + 1}-{target + 1}" for source, target in links) for _, _, links in pairs]
    expected = [" ".join(f"{source}-{target}" for source, target in links) for _, _, links in pairs]
    for name, content in (("pairs", lines), ("gold", gold), ("expected", expected)):
        (folder / name).write_text("\n".join(content) + "\n")
    return folder


def test_planted_alignment_is_written_without_error(translator, files, tmp_path):
    tuned = run("tune", "--alignments", files / "pairs", "--gold", files / "gold", "--model", translator)
    assert tuned.exit_code == 0, tuned.stderr
    assert "AER, forward    0.00 (four-fold)" in tuned.stdout
    done = run("align", "--pairs", files / "pairs", "--model", translator, "--out", tmp_path / "links")
    assert done.exit_code == 0, done.stderr
    assert "untuned" not in done.stderr
    assert (tmp_path / "links").read_text() == (files / "expected").read_text()
    lines = run("align", "--pairs", files / "pairs", "--model", translator, "--json").stdout.splitlines()
    links = [" ".join(f"{source}-{target}" for source, target in json.loads(line)["links"]) for line in lines]
    assert links == (files / "expected").read_text().splitlines()


def test_tune_without_gold_links_says_that_heads_are_untuned(translator, files, tmp_path):
    out = tmp_path / "heads.json"
    done = run("tune", "--alignments", files / "pairs", "--model", translator, "--out", out, "--json")
    assert done.exit_code == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["file"] == str(out)
    assert report["error_rates"] == {}
    assert not AlignmentHeads.load(out).is_tuned
    one = run("align", "the house", "la maison", "--model", translator, "--heads", out)
    assert "untuned" in one.stderr


def test_align_shows_table_json_and_page(translator, tmp_path):
    page = tmp_path / "page.html"
    table = run("align", "the red house", "la maison rouge", "--model", translator, "--html", page)
    assert table.exit_code == 0, table.stderr
    assert [line.split()[:2] for line in table.stdout.splitlines()[1:]] == [
        ["la", "the"],
        ["maison", "house"],
        ["rouge", "red"],
    ]
    content = page.read_text()
    assert "Content-Security-Policy" in content
    assert content.count('class="link"') == 3
    assert '<span dir="auto">the red house</span><span dir="auto">la maison rouge</span>' in content
    shown = run("align", "the red house", "la maison rouge", "--model", translator, "--json")
    report = json.loads(shown.stdout)
    assert report["links"] == [[0, 0], [1, 2], [2, 1]]
    assert report["tuned_on"] is None


def test_words_cannot_become_html(translator, tmp_path):
    page = tmp_path / "page.html"
    done = run("align", "<script>alert(1)</script>", "<b>la", "--model", translator, "--html", page)
    assert done.exit_code == 0, done.stderr
    assert "<script>" not in page.read_text()
    assert "<b>" not in page.read_text()


def test_translate_prints_a_table_for_each_sentence(tmp_path):
    folder = tmp_path / "letters"
    model = make_translator("marian")
    model.generation_config.suppress_tokens = [0, 1, 2, 3, *range(40, 64)]
    model.generation_config.forced_eos_token_id = None
    model.save_pretrained(folder)
    make_letter_tokenizer().save_pretrained(folder)
    done = run("translate", "the house. the old.", "--model", folder, "--max-tokens", 5, "--json")
    assert done.exit_code == 0, done.stderr
    decoder = json.JSONDecoder()
    first, end = decoder.raw_decode(done.stdout)
    second, _ = decoder.raw_decode(done.stdout[end:].lstrip())
    assert (first["source"], second["source"]) == ("the house.", "the old.")
    assert first["alignment"]["target"] == first["text"].split()
    assert not first["complete"]
    table = run("translate", "the house.", "--model", folder, "--max-tokens", 5, "--beams", 2)
    assert table.exit_code == 0, table.stderr
    assert "source words in order" in table.stdout


@pytest.fixture(scope="module")
def whisper(tmp_path_factory):
    return write_ct2_folder(tmp_path_factory.mktemp("models") / "whisper", make_whisper())


@pytest.fixture
def sound(tmp_path):
    samples = np.random.default_rng(0).normal(size=32_000) * 3000
    path = tmp_path / "noise.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(samples.astype("<i2").tobytes())
    return path


def test_transcribe_writes_every_format(whisper, sound, tmp_path):
    options = ("--model", whisper, "--dtype", "float32", "--text", "ab cd")
    words = run("transcribe", sound, *options)
    assert words.exit_code == 0, words.stderr
    assert [line.split()[-1] for line in words.stdout.splitlines()] == ["ab", "cd"]
    assert run("transcribe", sound, *options, "--format", "text").stdout == "ab cd\n"
    assert run("transcribe", sound, *options, "--format", "vtt").stdout.startswith("WEBVTT\n\n00:00:0")
    report = json.loads(run("transcribe", sound, *options, "--json").stdout)
    assert [word["text"] for word in report["words"]] == ["ab", "cd"]
    out = tmp_path / "noise.srt"
    assert run("transcribe", sound, *options, "--format", "srt", "--out", out).stdout == ""
    assert out.read_text().startswith("1\n00:00:0")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["align"], "SOURCE must be given"),
        (["align", "the"], "TARGET must be given"),
        (["align", "the", "la", "--symmetrise", "sum"], "--symmetrise must be one of"),
        (["align", "the", "la", "--one-way", "--symmetrise", "union"], "--symmetrise must be 'score'"),
        (["align", "the", "la", "--heads", "gone.json"], "--heads must name an existing file"),
        (["translate", "the", "--heads", "gone.json"], "--heads must name an existing file"),
        (["translate", " "], "text must have at least one word"),
        (["align", "the", "la", "--languages", "English"], "--languages must be two languages"),
        (["align", "", "la"], "source must have at least one word"),
        (["align", "the", "--pairs", "x"], "cannot be combined with --pairs"),
        (["align", "--pairs", "gone"], "--pairs must name an existing file"),
        (["tune"], "--data must name a file"),
        (["tune", "--alignments", "gone"], "pairs must name an existing file"),
        (["transcribe", "gone.wav"], "must name an existing file"),
    ],
)
def test_mistakes_are_named_in_one_line(arguments, message):
    done = run(*arguments)
    assert done.exit_code == 2
    assert message.lower() in done.stderr.lower()
    assert done.stderr.count("\n") == 1


def test_wrong_formats_and_models_are_refused(whisper, translator, sound):
    refused = run("transcribe", sound, "--model", whisper, "--format", "ass")
    assert (refused.exit_code, "--format must be one of" in refused.stderr) == (2, True)
    for option, value in (("--format", "vtt"), ("--text", " ")):
        refused = run("transcribe", sound, "--model", whisper, "--json", option, value)
        assert (refused.exit_code, f"{option} " in refused.stderr) == (2, True)
    refused = run("transcribe", sound, "--model", whisper, "--task", "translate")
    assert (refused.exit_code, "--task must be 'transcribe'" in refused.stderr) == (2, True)
    refused = run("transcribe", sound, "--model", translator)
    assert (refused.exit_code, "must be a Whisper model" in refused.stderr) == (2, True)
    refused = run("transcribe", sound, "--model", whisper, "--language", "fr")
    assert (refused.exit_code, "--language must be 'en'" in refused.stderr) == (2, True)
