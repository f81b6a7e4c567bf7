"""Running text is split into sentences by the rules of its language."""

import pytest

from keywise.documents import Source, sentences
from keywise.documents.languages import detect_language
from keywise.documents.sentences import split_prose


@pytest.mark.parametrize(
    ("language", "expected"),
    [
        ("en", ["Mr. Low paid approx. 5 pounds.", "See Fig. 3 on p. 4.", "It was Messrs. Day & Co. of Hull."]),
        ("en", ["Plan B was chosen.", "1. Definitions come first."]),
        ("de", ["Er kam am 3. März.", "Im 2. Stock wohnt Frau Dr. Alt.", "Zimmer Nr. 8.", "Es kostet ca. 5 Euro."]),
        ("fr", ["M. Dupont est parti.", "Il reviendra demain."]),
        ("es", ["El Sr. Gómez llegó.", "¿Quién es?", "No lo sé."]),
        ("zh", ["灯塔建于一八六二年。", "“你好！”他说。", "灯是红色的。"]),
        ("ja", ["灯台は高い。", "「はい。」と彼は言った。", "雨だ。"]),
        ("ar", ["المنارة عالية.", "متى بنيت؟", "لا أعرف."]),
        ("hi", ["दीपक जल रहा है।", "वह कौन है?", "सीता।"]),
        ("ru", ["Маяк высокий.", "Кто там?", "Никого."]),
    ],
)
def test_sentences_end_by_the_rules_of_their_language(language, expected):
    separator = "" if language in ("zh", "ja") else " "
    text = separator.join(expected)
    assert [text[start:end] for start, end in split_prose(text, language)] == expected


def test_thai_is_cut_at_spaces_between_long_phrases():
    phrase = "ประภาคารแห่งนี้สร้างขึ้นเมื่อหลายปีก่อนโดยชาวประมงในหมู่บ้านริมทะเลแห่งหนึ่ง"
    text = f"{phrase} {phrase} 1862 {phrase}"
    parts = [text[start:end] for start, end in split_prose(text, "th")]
    assert parts == [phrase, f"{phrase} 1862 {phrase}"]


@pytest.mark.parametrize(
    "text", ["He took vitamin C\u00a0. It helped.", "Plan B\u202f. Go.", "The U.S\u3000. Navy came."]
)
def test_blanks_of_any_kind_do_not_stop_the_splitter(text):
    assert "".join("".join(text[start:end].split()) for start, end in Source("text", text).sentences) == "".join(
        text.split()
    )


def test_a_panic_of_the_splitter_is_not_fatal(monkeypatch):
    class PanicException(BaseException):
        pass

    def panic(_language, _text):
        raise PanicException("byte index 3 is not a char boundary")

    monkeypatch.setattr("sentencex.get_sentence_boundaries", panic)
    text = "It is dry. Rain comes! 雨だ。風だ。"
    parts = [text[start:end] for start, end in split_prose(text, "en")]
    assert parts == ["It is dry.", "Rain comes!", "雨だ。", "風だ。"]


def test_a_sentence_across_two_parts_of_a_long_text_is_whole(monkeypatch):
    monkeypatch.setattr(sentences, "PART_CHARACTERS", 40)
    text = "The lamp is lit. The old keeper lives on the rock. He is Bo. Birds nest there every year."
    parts = [text[start:end] for start, end in split_prose(text, "en")]
    assert parts == [
        "The lamp is lit.",
        "The old keeper lives on the rock.",
        "He is Bo.",
        "Birds nest there every year.",
    ]


def test_each_block_is_split_by_its_own_language():
    german = "Die Wohnung ist im 2. Stock und das Bad ist neu. Der Mieter zahlt am 1. Mai die Miete."
    english = "The flat is on the second floor. It has a bath."
    source = Source("lease", f"{english}\n\n{german}\n\n灯塔很高。灯是红的。")
    assert [quote.text for quote in source.quotes] == [
        "The flat is on the second floor.",
        "It has a bath.",
        "Die Wohnung ist im 2. Stock und das Bad ist neu.",
        "Der Mieter zahlt am 1. Mai die Miete.",
        "灯塔很高。",
        "灯是红的。",
    ]


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("De boot is niet van hem, maar hij vaart er mee naar het eiland.", "nl"),
        ("La maison est dans une rue qui ne mène pas à la mer.", "fr"),
        ("هذا الكتاب جديد", "ar"),
        ("これは本です", "ja"),
        ("ภาษาไทย", "th"),
        ("42", "en"),
    ],
)
def test_languages_are_detected(text, language):
    assert detect_language(text) == language


def test_a_long_list_item_is_read_as_prose():
    sentence = "The tenant keeps the garden in good order and waters the trees at least twice a week. "
    source = Source("lease", f"- {sentence * 6}\n- short. Two.\n")
    assert [quote.text for quote in source.quotes] == [sentence.strip()] * 6 + ["short. Two."]


def test_a_part_of_a_source_has_the_sentences_of_the_source():
    source = Source("note", "# Lamps\n\nOne is **red.** Two are blue.\n\n- three\n- four\n")
    begin, end = source.sentences[1][0], source.sentences[-1][1]
    part = source.cut(begin, end)
    assert [quote.text for quote in part.quotes] == [quote.text for quote in source.quotes][1:]
    assert [part.text[start:end] for start, end in part.sentences] == [
        source.text[start:end] for start, end in source.sentences[1:]
    ]
    assert {quote.block.heading_path for quote in part.quotes} == {("Lamps",)}
