"""Blocks of a PDF: paragraphs in reading order, headings, tables, captions and footnotes, with places on the page."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Final

from keywise.documents.blocks import BlockBuilder, BlockKind, Box
from keywise.documents.extract.extracted import Extracted, UnreadableFileError
from keywise.documents.extract.lines import find_vocabulary, join_words
from keywise.documents.extract.pdf_layout import find_columns, remove_line_numbers, remove_running_lines
from keywise.documents.extract.pdf_words import (
    Fragment,
    PageWords,
    Word,
    group_lines,
    iterate_words,
    make_fragments,
    read_words,
    turn,
)

MIN_PAGE_CHARACTERS: Final = 15
MAX_UNMAPPED_SHARE: Final = 0.2
MAX_MEAN_WORD_CHARACTERS: Final = 20
MIN_JUDGED_CHARACTERS: Final = 200
MAX_HEADING_CHARACTERS: Final = 150
MAX_HEADING_LINES: Final = 3
HEADING_SIZE: Final = 1.08
FOOTNOTE_SIZE: Final = 0.93
MAX_FIXED_SHARE: Final = 0.5
MAX_INDENT: Final = 60
MAX_CHANCE_ROWS: Final = 3
MAX_JUSTIFIED_GAP: Final = 1.6

_CAPTION: Final = re.compile(
    r"(?:table|tab\.|figure|fig\.|abbildung|abb\.|tabelle|tableau|figura|tabla|scheme|algorithm|listing)\s*"
    r"(?:\d+|[IVX]+)\s*[.:|–—-]",
    re.IGNORECASE,
)
_FOOTNOTE: Final = re.compile(r"(?:\d{1,3}|[*†‡§¶¹²³⁴-⁹]+|[a-z](?=[A-Z]))\s*\S")
_ITEM: Final = re.compile(r"(?:[-*•‣◦▪●–]|\(?(?:\d{1,3}|[a-zA-Z]|[ivx]{1,4})[.)]|\[\w{1,8}\])\s+\S")
_BULLET: Final = re.compile(r"[-*•‣◦▪●–]\s+")
_SENTENCE_END: Final = re.compile(r"[.!?:;。！？।…][\"'”’»)\]]*\Z")
_OPEN_END: Final = re.compile(r"[^.!?:;。！？।…\"'”’»)\]]\Z")
_CONTENTS_LINE: Final = re.compile(r".*?(?:\s?\.){4,}\s*\w{1,8}\Z")
# A line of contents without dots: its number, its title and its page stand apart.
_CONTENTS_ENTRY: Final = re.compile(r"(\d{1,2}(?:\.\d{1,2})*)\.?\s+[^\W\d].*?\s(\d{1,4}|[ivxlc]{1,8})")
_UNREADABLE: Final = re.compile("[\ufffd\ue000-\uf8ff]")
MIN_CONTENTS_LINES: Final = 3
_CODE_MARK: Final = re.compile(r"[(){}=;$>|\\]")
_SECTION_NUMBER: Final = re.compile(r"\d{1,2}(?:\.\d{1,2})*\.?\s+\S")


@dataclass
class _Line:
    """A line of a column."""

    fragments: list[Fragment]
    page: int
    words: list[Word] = field(init=False)

    def __post_init__(self) -> None:
        self.words = list(iterate_words(self.fragments))
        self.left = min(word.left for word in self.words)
        self.right = max(word.right for word in self.words)
        sizes = Counter[float]()
        for word in self.words:
            sizes[round(word.size, 1)] += len(word.text)
        self.size = sizes.most_common(1)[0][0]
        self.baseline = next(word.baseline for word in self.words if round(word.size, 1) == self.size)
        self.text = " ".join(word.text for word in self.words)
        self.is_bold = all(word.is_bold for word in self.words)
        self.is_code = all(word.is_fixed for word in self.words)


@dataclass
class _Part:
    """Lines that become one block, or a table."""

    kind: BlockKind
    lines: list[_Line]
    is_first: bool = False
    is_last: bool = False
    rows: list[list[str]] = field(default_factory=list)

    @property
    def text(self) -> str:
        return " ".join(line.text for line in self.lines)


def extract(content: bytes) -> Extracted:
    """Return the text and blocks of a PDF.

    Parameters
    ----------
    content
        The file.

    Raises
    ------
    UnreadableFileError
        It is encrypted.
    """
    import pypdfium2  # noqa: PLC0415 - optional

    try:
        document = pypdfium2.PdfDocument(content)
    except pypdfium2.PdfiumError as error:
        if "password" in str(error).lower():
            raise UnreadableFileError("it is encrypted: save a copy without a password") from error
        raise
    pages: list[list[Fragment]] = []
    turns: list[int] = []
    without_text: list[int] = []
    untrusted: list[int] = []
    for index in range(len(document)):
        page = document[index]
        text_page = page.get_textpage()
        words = read_words(text_page)
        has_objects = (
            words.characters < MIN_PAGE_CHARACTERS and next(iter(page.get_objects(max_depth=2)), None) is not None
        )
        text_page.close()
        page.close()
        if words.characters < MIN_PAGE_CHARACTERS and has_objects and not words.words:
            without_text.append(index + 1)
        if _is_unmapped(words):
            untrusted.append(index + 1)
            words = PageWords([], 0, 0)
        elif _has_no_spaces(words):
            untrusted.append(index + 1)
        pages.append(make_fragments([word for word in words.words if not _is_unreadable(word)]))
        turns.append(words.quarter_turns)
    parts = _find_parts([remove_line_numbers(page) for page in remove_running_lines(pages)])
    builder = BlockBuilder()
    _add_parts(builder, parts, turns)
    return Extracted(builder.text, tuple(builder.blocks), tuple(_warn(without_text, untrusted, bool(builder.blocks))))


def _warn(without_text: Sequence[int], untrusted: Sequence[int], has_text: bool) -> Iterator[str]:
    if without_text and has_text:
        yield (
            f"{_name_pages(without_text)} without text, probably scanned: "
            "add the text with `ocrmypdf scan.pdf text.pdf`"
        )
    if untrusted:
        yield (
            f"{_name_pages(untrusted)} whose text cannot be trusted: spaces are missing, or fonts do not say which "
            "letters they show"
        )


def _name_pages(numbers: Sequence[int]) -> str:
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    names = [str(first) if first == last else f"{first}-{last}" for first, last in ranges]
    return f"page{'s' if len(numbers) > 1 else ''} {', '.join(names)}"


def _is_unmapped(words: PageWords) -> bool:
    return words.unmapped > MAX_UNMAPPED_SHARE * max(words.characters, MIN_PAGE_CHARACTERS)


def _is_unreadable(word: Word) -> bool:
    """Return whether most characters of a word have no letter, as those of some figures."""
    return 2 * len(_UNREADABLE.findall(word.text)) > len(word.text)


def _has_no_spaces(words: PageWords) -> bool:
    latin = [word for word in words.words if word.text[:1].isascii() and word.text[:1].isalpha()]
    letters = sum(sum(map(str.isalpha, word.text)) for word in latin)
    return letters > MIN_JUDGED_CHARACTERS and letters > MAX_MEAN_WORD_CHARACTERS * len(latin)


def _find_parts(pages: Sequence[list[Fragment]]) -> list[_Part]:
    body_size = _find_body_size(pages)
    # A document that is typed has no code.
    has_code = _measure_fixed_share(pages) < MAX_FIXED_SHARE
    parts: list[_Part] = []
    for number, fragments in enumerate(pages, start=1):
        for column in find_columns(fragments):
            own = _read_column([_Line(line, number) for line in group_lines(column)], body_size, has_code=has_code)
            if own:
                own[0].is_first = own[-1].is_last = True
                # What ends a column is the last paragraph above its footnotes.
                for part in reversed(own):
                    if part.kind == BlockKind.PARAGRAPH:
                        part.is_last = True
                        break
                for part in own:
                    if part.kind == BlockKind.PARAGRAPH:
                        part.is_first = True
                        break
            parts += own
    return _move_floats(_join_parts(parts))


def _move_floats(parts: list[_Part]) -> list[_Part]:
    """Put each table with its caption behind the paragraph that mentions it first, if that is near."""
    floats: list[tuple[re.Pattern[str], list[_Part]]] = []
    rest: list[_Part] = []
    number = 0
    while number < len(parts):
        part = parts[number]
        group = [part]
        if (part.kind == BlockKind.CAPTION and number + 1 < len(parts) and parts[number + 1].rows) or (
            part.rows and number + 1 < len(parts) and parts[number + 1].kind == BlockKind.CAPTION
        ):
            group.append(parts[number + 1])
        caption = next((_CAPTION.match(each.text) for each in group if each.kind == BlockKind.CAPTION), None)
        if caption:
            name = re.escape(caption.group().rstrip(" .:|–—-"))
            floats.append((re.compile(rf"\b{name}\b".replace(r"\ ", r"\s*"), re.IGNORECASE), group))
        else:
            rest += group
        number += len(group)
    homes: dict[int, list[_Part]] = {}
    kept = {id(part) for part in rest}
    for name_pattern, group in floats:
        page = group[0].lines[0].page
        home = next(
            (
                part
                for part in rest
                if not part.rows and abs(part.lines[-1].page - page) <= 1 and name_pattern.search(part.text)
            ),
            None,
        )
        if home is None:
            home = next((part for part in reversed(parts[: parts.index(group[0])]) if id(part) in kept), None)
        homes.setdefault(id(home), []).extend(group)
    ordered = homes.get(id(None), [])
    for part in rest:
        ordered += [part, *homes.get(id(part), [])]
    return ordered


def _find_body_size(pages: Sequence[list[Fragment]]) -> float:
    sizes = Counter[float]()
    for fragments in pages:
        for fragment in fragments:
            for word in fragment.words:
                sizes[round(word.size, 1)] += len(word.text)
    return sizes.most_common(1)[0][0] if sizes else 1.0


def _measure_fixed_share(pages: Sequence[list[Fragment]]) -> float:
    words = [word for fragments in pages for fragment in fragments for word in fragment.words]
    return sum(word.is_fixed for word in words) / max(len(words), 1)


def _read_column(lines: list[_Line], body_size: float, *, has_code: bool) -> list[_Part]:
    """Return the paragraphs and tables of a column."""
    parts: list[_Part] = []
    number = 0
    left = min((line.left for line in lines), default=0.0)
    right = max((line.right for line in lines), default=0.0)
    leading = _find_leading(lines)
    while number < len(lines):
        contents = _count_contents_lines(lines[number:])
        if contents:
            parts += [_Part(BlockKind.CONTENTS_LINE, [line]) for line in lines[number : number + contents]]
            number += contents
            continue
        code_lines = _count_code_lines(lines[number:], leading) if has_code else 0
        if code_lines:
            parts.append(_Part(BlockKind.CODE, lines[number : number + code_lines]))
            number += code_lines
            continue
        rows, table_lines = _read_table(lines[number:])
        if rows:
            parts.append(_Part(BlockKind.TABLE_ROW, lines[number : number + table_lines], rows=rows))
            number += table_lines
            continue
        line = lines[number]
        last = parts[-1] if parts and parts[-1].kind == BlockKind.PARAGRAPH else None
        if last and not _starts_part(last.lines, line, left, right, leading):
            last.lines.append(line)
        else:
            parts.append(_Part(BlockKind.PARAGRAPH, [line]))
        number += 1
    parts = _join_title_lines(parts, body_size)
    for index, part in enumerate(parts):
        if part.kind == BlockKind.PARAGRAPH:
            part.kind = _find_kind(
                part, body_size, is_low=all(each.lines[0].size < body_size for each in parts[index:])
            )
    return parts


def _count_contents_lines(lines: Sequence[_Line]) -> int:
    """Return how many lines from the first on are a table of contents."""
    count = entries = 0
    last_page = 0
    for line in lines:
        entry = _CONTENTS_ENTRY.fullmatch(line.text) if len(line.fragments) > 1 else None
        if entry and entry[2].isdecimal():
            if int(entry[2]) < last_page:
                break
            last_page = int(entry[2])
        elif not entry and not _CONTENTS_LINE.match(line.text):
            break
        entries += entry is not None
        count += 1
    # Two sections that follow each other number the rows of a table as well.
    return count if count >= MIN_CONTENTS_LINES or count > entries else 0


def _count_code_lines(lines: Sequence[_Line], leading: float) -> int:
    """Return how many lines from the first on are a listing: all their words have a font of fixed pitch."""
    count = 0
    while count < len(lines) and lines[count].is_code:
        if count and not 0 < lines[count - 1].baseline - lines[count].baseline < 3 * leading:
            break
        count += 1
    # A single word of that kind is an address.
    is_code = count > 1 or (count == 1 and (len(lines[0].words) > 2 or _CODE_MARK.search(lines[0].text)))
    return count if is_code else 0


def _join_title_lines(parts: Sequence[_Part], body_size: float) -> list[_Part]:
    """Join the lines of a title: larger than the body, of one size, with the spacing of that size."""
    joined: list[_Part] = []
    for part in parts:
        last = joined[-1].lines[-1] if joined and joined[-1].kind == BlockKind.PARAGRAPH else None
        first = part.lines[0]
        if (
            last is not None
            and part.kind == BlockKind.PARAGRAPH
            and first.size >= HEADING_SIZE * body_size
            and abs(first.size - last.size) < 0.05 * last.size
            and 0 < last.baseline - first.baseline < 1.6 * last.size
            and not _SECTION_NUMBER.match(first.text)
        ):
            joined[-1].lines += part.lines
        else:
            joined.append(part)
    return joined


def _find_leading(lines: Sequence[_Line]) -> float:
    steps = [first.baseline - second.baseline for first, second in itertools.pairwise(lines)]
    size = median([line.size for line in lines]) if lines else 1.0
    steps = [step for step in steps if 0.5 * size < step < 2.5 * size]
    return median(steps) if steps else 1.3 * size


def _starts_part(  # noqa: PLR0911 - one return for each sign
    before: list[_Line], line: _Line, left: float, right: float, leading: float
) -> bool:
    """Return whether a line begins a paragraph and does not go on with the lines before."""
    last = before[-1]
    size = max(last.size, line.size)
    step = last.baseline - line.baseline
    if _CONTENTS_LINE.match(last.text):
        return True
    has_new_font = abs(last.size - line.size) > 0.12 * size or (
        last.is_bold != line.is_bold and len(before[0].text) < 100
    )
    if has_new_font and (len(line.words) > 2 or step > 1.2 * leading):
        return True
    if step > max(1.35 * leading, 1.1 * size + 1.0) or step < 0:
        return True
    starts_item = _ITEM.match(line.text) is not None
    in_item = _ITEM.match(before[0].text) is not None
    # A number at the start of a wrapped line is no item: items stand below each other, and a list begins with 1.
    if starts_item and in_item and line.left <= before[0].left + size:
        return True
    is_first_item = not in_item and not (line.text[0].isdigit() and not line.text.startswith("1"))
    is_deeper = line.left > last.left + 0.5 * size and line.text[0] in "(1aAi"
    if starts_item and is_first_item and (_SENTENCE_END.search(last.text) or _BULLET.match(line.text) or is_deeper):
        return True
    is_indented = line.left > left + 0.8 * size
    if is_indented and last.left <= left + 0.5 * size and not in_item and len(before) >= 1:
        return not _is_centred(last, line)
    is_short = last.right < right - 0.2 * (right - left)
    if is_short and _SENTENCE_END.search(last.text):
        return True
    first_word = line.words[0]
    spare = right - last.right - (first_word.right - first_word.left)
    return spare > 4 * size and first_word.text[:1].isupper() and not last.text.endswith((",", "-"))


def _is_centred(first: _Line, second: _Line) -> bool:
    return abs((first.left + first.right) - (second.left + second.right)) < 2 * first.size


def _find_kind(part: _Part, body_size: float, *, is_low: bool) -> BlockKind:
    text = part.text
    if _CAPTION.match(text):
        return BlockKind.CAPTION
    if len(part.lines) <= MAX_HEADING_LINES and _CONTENTS_LINE.match(text):
        return BlockKind.CONTENTS_LINE
    size = part.lines[0].size
    if size < FOOTNOTE_SIZE * body_size and is_low and _FOOTNOTE.match(text):
        return BlockKind.FOOTNOTE
    is_short = len(text) <= MAX_HEADING_CHARACTERS and len(part.lines) <= MAX_HEADING_LINES
    stands_out = size >= HEADING_SIZE * body_size or all(line.is_bold for line in part.lines)
    if is_short and stands_out and not text.endswith((".", ",", ";")) and any(map(str.isalpha, text)):
        return BlockKind.HEADING
    if _ITEM.match(text) and text[0] != "[":
        return BlockKind.LIST_ITEM
    return BlockKind.PARAGRAPH


def _read_table(lines: Sequence[_Line]) -> tuple[list[list[str]], int]:
    """Return the rows of the table that begins with the first line, and its number of lines."""
    count = 0
    columns: list[tuple[float, float]] = []
    while count < len(lines) and len(lines[count].fragments) >= 2:
        if count and lines[count - 1].baseline - lines[count].baseline > 4 * lines[count].size:
            break
        merged = _merge_intervals([*columns, *((each.left, each.right) for each in lines[count].fragments)])
        if len(merged) < 2 or (columns and len(merged) < len(columns) and len(merged) < 2):
            break
        columns = merged
        count += 1
    # Headings whose numbers stand apart are no table.
    are_titles = all(_SECTION_NUMBER.match(line.text) and line.is_bold for line in lines[:count])
    gaps = [right[0] - left[1] for left, right in itertools.pairwise(columns)]
    # The gaps of justified text are narrow, and stand below each other by chance only.
    is_prose = count <= MAX_CHANCE_ROWS and all(gap < MAX_JUSTIFIED_GAP * lines[0].size for gap in gaps)
    if count < 2 or (count == 2 and len(columns) == 2) or are_titles or is_prose:
        return [], 0
    rows = []
    for line in lines[:count]:
        cells = ["" for _ in columns]
        for fragment in line.fragments:
            column = next(i for i, (left, right) in enumerate(columns) if left <= fragment.left <= right)
            cells[column] = f"{cells[column]} {fragment.text}".strip()
        rows.append(cells)
    return rows, count


def _merge_intervals(intervals: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    merged: list[tuple[float, float]] = []
    for left, right in sorted(intervals):
        if merged and left <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], right))
        else:
            merged.append((left, right))
    return merged


def _join_parts(parts: list[_Part]) -> list[_Part]:
    """Join paragraphs that go on in the next column or on the next page."""
    joined: list[_Part] = []
    open_part: _Part | None = None
    for part in parts:
        if (
            open_part is not None
            and part.kind == BlockKind.PARAGRAPH
            and part.is_first
            and (part.text[:1].islower() or open_part.text.endswith("-") or _goes_on(open_part, part))
        ):
            open_part.lines += part.lines
            open_part = open_part if part.is_last and _OPEN_END.search(part.text) else None
            continue
        if part.kind in (BlockKind.PARAGRAPH, BlockKind.LIST_ITEM):
            open_part = part if part.is_last and _OPEN_END.search(part.text) else None
        elif part.kind == BlockKind.HEADING:
            open_part = None
        joined.append(part)
    return joined


def _goes_on(before: _Part, part: _Part) -> bool:
    """Return whether the last line of a column is full, so that the next column goes on with its sentence."""
    width = max(line.right - line.left for line in before.lines)
    last = before.lines[-1]
    alike = abs(last.size - part.lines[0].size) < 0.05 * last.size
    return alike and len(before.lines) > 1 and last.right - last.left > 0.95 * width


def _add_parts(builder: BlockBuilder, parts: Sequence[_Part], turns: Sequence[int]) -> None:
    vocabulary = find_vocabulary("\n".join(line.text for part in parts for line in part.lines))
    sizes = sorted({part.lines[0].size for part in parts if part.kind == BlockKind.HEADING}, reverse=True)
    for part in parts:
        page = part.lines[0].page
        if part.rows:
            has_names = not any(map(str.isdigit, "".join(part.rows[0])))
            values = "".join(cell for row in part.rows[1:] for cell in row)
            builder.add_table(part.rows, has_header=has_names and any(map(str.isdigit, values)), page=page)
            continue
        if part.kind == BlockKind.CODE:
            text, boxes = _join_code(part.lines, turns)
            builder.add(part.kind, text, keep_lines=True, page=page, boxes=boxes)
            continue
        text, boxes = _join_words(part.lines, vocabulary, turns)
        if part.kind == BlockKind.HEADING:
            number = _SECTION_NUMBER.match(text)
            depth = number.group().rstrip().split()[0].strip(".").count(".") if number else 0
            level = 1 + sizes.index(part.lines[0].size) + depth
            builder.add_heading(text, level=level, page=page, boxes=boxes)
        elif part.kind == BlockKind.LIST_ITEM:
            mark = _BULLET.match(text)
            skipped = mark.end() if mark else 0
            moved = tuple(
                Box(box.begin - skipped, box.end - skipped, box.page, box.left, box.bottom, box.right, box.top)
                for box in boxes
                if box.begin >= skipped
            )
            builder.add(part.kind, text[skipped:], page=page, boxes=moved)
        else:
            builder.add(part.kind, text, page=page, boxes=boxes)


def _join_code(lines: Sequence[_Line], turns: Sequence[int]) -> tuple[str, tuple[Box, ...]]:
    """Return the lines of a listing with their indentation, and the places of its words."""
    parts: list[str] = []
    boxes: list[Box] = []
    length = 0
    left = min(line.left for line in lines)
    widths = [(word.right - word.left) / len(word.text) for line in lines for word in line.words]
    width = max(median(widths), 0.1)
    for number, line in enumerate(lines):
        end = left
        if number:
            parts.append("\n")
            length += 1
        for word in line.words:
            blanks = min(max(round((word.left - end) / width), 0), MAX_INDENT)
            if word is not line.words[0]:
                blanks = max(blanks, 1)
            parts += [" " * blanks, word.text]
            begin, length = length + blanks, length + blanks + len(word.text)
            boxes.append(_make_box(word, begin, length, line.page, turns))
            end = word.right
    return "".join(parts), tuple(boxes)


def _make_box(word: Word, begin: int, end: int, page: int, turns: Sequence[int]) -> Box:
    edges = turn(word.left, word.bottom, word.right, word.top, -turns[page - 1])
    return Box(begin, end, page, *_round(*edges))


def _join_words(
    lines: Sequence[_Line], vocabulary: frozenset[str], turns: Sequence[int]
) -> tuple[str, tuple[Box, ...]]:
    """Return lines as running text, and the places of its words."""
    parts: list[str] = []
    boxes: list[Box] = []
    length = 0
    for line in lines:
        for number, word in enumerate(line.words):
            if parts:
                lost, separator = join_words(parts[-1], word.text, vocabulary) if number == 0 else (0, " ")
                if lost:
                    parts[-1] = parts[-1][:-1]
                    length -= 1
                parts.append(separator)
                length += len(separator)
            begin, length = length, length + len(word.text)
            parts.append(word.text)
            boxes.append(_make_box(word, begin, length, line.page, turns))
    return "".join(parts), tuple(boxes)


def _round(*values: float) -> tuple[float, ...]:
    return tuple(round(value, 1) for value in values)
