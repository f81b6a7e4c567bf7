"""Blocks of plain text: paragraphs, headings, lists and tables, messages, mails and logs, by their lines."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from typing import Final

from keywise.documents.blocks import Block, BlockBuilder, BlockKind, render_row
from keywise.documents.extract.lines import Line, find_vocabulary, iterate_paragraphs, join_lines, split_lines

MAX_HEADING_CHARACTERS: Final = 80
MAX_HEADING_WORDS: Final = 12
# Lines that must look alike before a text counts as a chat, a transcript or a log, and their share of all lines.
MIN_MESSAGES: Final = 3
MIN_SPEECHES: Final = 4
MESSAGE_SHARE: Final = 0.5
LOG_SHARE: Final = 0.6
SPEECH_SHARE: Final = 0.7
# Fewer lines with wide gaps below each other are justified text.
MIN_ROWS: Final = 3
MIN_HANGING_LINES: Final = 3
MIN_HANGING_INDENT: Final = 2
MAX_UNCASED_CHARACTERS: Final = 12
MAX_FRONT_MATTER_LINES: Final = 100

_DATE = r"\d{1,4}[./-]\d{1,2}[./-]\d{1,4}"
_TIME = r"\d{1,2}[:.]\d{2}(?:[:.]\d{2})?(?:[\s\u202f]?[AaPp]\.?[Mm]\.?)?"
_STAMP: Final = re.compile(
    rf"[\u200e\u200f]?(?:\[(?:{_DATE},?\s+)?{_TIME}\]|\({_TIME}\)|{_DATE},?\s+{_TIME}(?:\s+[-–]|:)?|{_TIME}(?=\s))\s*"
)
_SPEAKER: Final = re.compile(r"(?:<[^<>\n]{1,40}>\s|[^\s:：<>][^:：<>\n]{0,40}?[:：](?:\s|\Z)|\*\s\S)")
_NICKNAME: Final = re.compile(r"<[^<>\s]{1,30}>\s+\S")
_SPEECH: Final = re.compile(r"([^\W\d_][\w.'’ -]{0,24})\s?[:：]\s?(?=\S)")
_MONTH = r"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)"
_LOG_LINE: Final = re.compile(
    rf"(?:<\d+>)?\[?(?:\d{{4}}[-/]\d\d[-/]\d\d[T ,]\s?\d\d:\d\d|{_MONTH}\s+\d{{1,2}}\s\d\d:\d\d:\d\d"
    r"|\d\d:\d\d:\d\d[.,\s])"
    r"|\d{1,3}(?:\.\d{1,3}){3}\s\S+\s\S+\s\[|\[?(?:DEBUG|INFO|WARN(?:ING)?|ERROR|FATAL|CRITICAL|TRACE|NOTICE)\b"
)
_MAIL_FIELD_NAMES: Final = (
    "from to cc bcc subject date sent reply-to von an betreff datum gesendet de à objet envoyé para asunto fecha"
)
_MAIL_FIELDS: Final = frozenset(_MAIL_FIELD_NAMES.split())
_LABEL: Final = re.compile(r"([^\W\d_][^:：.!?\n]{0,30})[:：](?=\s|\Z)")
_ALIGNED_LABEL: Final = re.compile(r"[^\W\d_][^:：.!?\n]{0,30}[:：](?:\s{2,}|\t)")

_ATX_HEADING: Final = re.compile(r"\s{0,3}(#{1,6})(?:\s+|\Z)")
_UNDERLINE: Final = re.compile(r"\s{0,3}(=+|-+)\Z")
_FENCE: Final = re.compile(r"\s*(```+|~~~+)")
_BULLET: Final = re.compile(r"\s*[-*+•‣◦▪●–]\s+(?=\S)")
_NUMBER: Final = re.compile(r"\s*(\(?)(\d{1,9}|[a-zA-Z]|[ivx]{1,5})[.)]\s+(?=\S)")
_FIRST_NUMBERS: Final = frozenset(("1", "a", "A", "i"))
_QUOTE_MARK: Final = re.compile(r"\s{0,3}>\s?")
_TABLE_ROW: Final = re.compile(r"\s*\|")
_TABLE_RULE: Final = re.compile(r"\s*\|?(?:\s*:?-+:?\s*\|)+\s*(?::?-+:?\s*)?\Z")
_RULE: Final = re.compile(r"[\W_]+\Z")
_GAP: Final = re.compile(r"\s{2,}|\t")
_CONTENTS_LINE: Final = re.compile(
    r"\S(?:(?!\s{3}|\t).)*?(?:\s*\.(?:\s?\.){2,}\s*|\s{3,}|\t+)(?:\W*[^\W\d]{1,7}\W+)?\d{1,4}\Z"
)
_PICTURE: Final = re.compile(r"\[(?:Illustration|Image|Figure|Picture|Abbildung|Bild)\b", re.IGNORECASE)
_SECTION_TITLE: Final = re.compile(
    r"(?:§+\s*\d+\w?|\d{1,2}(?:\.\d{1,2})*\.?|[IVXLC]{1,6}\.|(?:chapter|part|section|article|kapitel|abschnitt|chapitre)\b"
    r"\s*\w{1,6}[.:]?)\s+\S",
    re.IGNORECASE,
)
_END_MARKS: Final = tuple(".!?:;,。！？।؟…")
# What begins so is spoken, quoted or explained, and no title.
_SPEECH_LIKE: Final = re.compile(r"[\"“”«‘'(\[_*—–-]")
_CLOSING_MARKS: Final = "\"”’»)]_*'0123456789[ "
_OPEN_WORD_LIST: Final = "a an the of and or in to for with by at on from der die das und oder in mit von"
_OPEN_WORDS: Final = frozenset(_OPEN_WORD_LIST.split())


def find_blocks(text: str, *, has_titles: bool = True) -> tuple[Block, ...]:
    r"""Return the blocks of a plain text.

    Headings, lists, tables, code and quotations may be marked as in Markdown. The lines of a paragraph are joined. The
    lines of a chat, a log and the fields of a mail are blocks of their own.

    Parameters
    ----------
    text
        The text.
    has_titles
        Whether a short line of its own may be a heading without a mark; in a mail it is a name.

    Examples
    --------
    >>> [(str(block.kind), block.text) for block in find_blocks("# Rain\nIt rained\nall day.\n\n- wet\n- cold")]
    [('heading', 'Rain'), ('paragraph', 'It rained all day.'), ('list item', 'wet'), ('list item', 'cold')]
    """
    lines = split_lines(text)
    filled = [line for line in lines if not line.is_blank]
    if blocks := _find_messages(filled, text) or _find_log_lines(filled) or _find_speeches(filled, text):
        return tuple(blocks)
    parser = _ProseParser(text, has_titles=has_titles)
    parser.parse(lines)
    return tuple(parser.blocks)


def make_blocks(text: str, spans: Sequence[tuple[int, int]]) -> tuple[Block, ...]:
    r"""Return a block of one sentence for each span of a text.

    Parameters
    ----------
    text
        The text.
    spans
        Characters of its sentences, ascending.

    Examples
    --------
    >>> [block.text for block in make_blocks("North,5\n# South", [(0, 7), (8, 15)])]
    ['North,5', 'South']
    """
    blocks = []
    for begin, end in spans:
        found = find_blocks(text[begin:end])
        kind = found[0].kind if found else BlockKind.LINE
        shown = " ".join(block.text for block in found) or text[begin:end]
        blocks.append(Block(kind, begin, end, shown))
    return tuple(blocks)


def add_plain_text(builder: BlockBuilder, text: str, *, has_titles: bool = True) -> None:
    r"""Append the blocks of a plain text to a document.

    Parameters
    ----------
    builder
        The document.
    text
        The text.
    has_titles
        As for `find_blocks`.

    Examples
    --------
    >>> builder = BlockBuilder()
    >>> add_plain_text(builder, "It rained\nall day.")
    >>> builder.text
    'It rained all day.'
    """
    for block in find_blocks(text, has_titles=has_titles):
        if block.kind == BlockKind.HEADING:
            builder.add_heading(block.text, level=len(block.heading_path) + 1)
        else:
            keep_lines = block.kind == BlockKind.CODE
            builder.add(block.kind, block.text, table_header=block.table_header, keep_lines=keep_lines)


def _find_messages(lines: Sequence[Line], text: str) -> list[Block]:
    """Return the messages of a chat, or nothing if the text is none."""
    starts = [_STAMP.match(line.text) or _NICKNAME.match(line.text) for line in lines]
    with_speaker = sum(
        1
        for line, start in zip(lines, starts, strict=True)
        if start and (_NICKNAME.match(line.text) or _SPEAKER.match(line.text, start.end()))
    )
    if with_speaker < MIN_MESSAGES or with_speaker < MESSAGE_SHARE * len(lines):
        return []
    return _group_lines(lines, [start is not None for start in starts], BlockKind.CHAT_LINE, text)


def _find_log_lines(lines: Sequence[Line]) -> list[Block]:
    stamped = sum(1 for line in lines if _LOG_LINE.match(line.text))
    if stamped < MIN_MESSAGES or stamped < LOG_SHARE * len(lines):
        return []
    return [_make_line(line, BlockKind.LINE) for line in lines]


def _find_speeches(lines: Sequence[Line], text: str) -> list[Block]:
    """Return the speeches of a transcript: "Name: words", with names that come again."""
    starts = [_SPEECH.match(line.text) for line in lines]
    names = Counter(start[1] for start in starts if start)
    speeches = names.total()
    repeated = sum(count for count in names.values() if count > 1)
    # Two names of one letter are questions and answers.
    if speeches < MIN_SPEECHES or len(names) < 2 or speeches < SPEECH_SHARE * len(lines) or 2 * repeated < speeches:
        return []
    return _group_lines(lines, [start is not None for start in starts], BlockKind.CHAT_LINE, text)


def _group_lines(lines: Sequence[Line], is_start: Sequence[bool], kind: BlockKind, text: str) -> list[Block]:
    """Return one block per line that starts a message, with the lines after it."""
    groups: list[list[Line]] = []
    first_start = is_start.index(True)
    for number, line in enumerate(lines):
        if is_start[number] or number <= first_start:
            groups.append([line])
        else:
            groups[-1].append(line)
    vocabulary = find_vocabulary(text)
    blocks = []
    for number, group in enumerate(groups):
        joined, runs = join_lines(group, vocabulary)
        own_kind = kind if number >= first_start else BlockKind.LINE
        blocks.append(Block(own_kind, group[0].begin + group[0].indent, group[-1].end, joined, runs))
    return blocks


def _make_line(line: Line, kind: BlockKind) -> Block:
    joined, runs = join_lines([line], frozenset())
    return Block(kind, line.begin + line.indent, line.end, joined, runs)


class _ProseParser:
    """Blocks of running text with light marks, line by line in one pass."""

    def __init__(self, text: str, *, has_titles: bool) -> None:
        self.blocks: list[Block] = []
        self._has_titles = has_titles
        self._vocabulary = find_vocabulary(text)
        self._pending: list[Line] = []
        self._pending_kind = BlockKind.PARAGRAPH
        self._pending_begin = 0
        self._headings: list[tuple[int, str]] = []
        self._lines: Sequence[Line] = []

    def parse(self, lines: Sequence[Line]) -> None:
        self._lines = lines
        number = self._parse_front_matter()
        while number < len(lines):
            number = self._parse_line(number)
        self._flush(len(lines))

    def _parse_front_matter(self) -> int:
        """Parse the fields between two rules at the beginning; return the number of the first line after them."""
        lines = self._lines
        if not lines or lines[0].text != "---":
            return 0
        for number in range(1, min(len(lines), MAX_FRONT_MATTER_LINES)):
            line = lines[number]
            if line.text in ("---", "..."):
                for each in lines[1:number]:
                    if not each.is_blank:
                        self._add(BlockKind.LINE, each.begin + each.indent, each.end, *join_lines([each], frozenset()))
                return number + 1
            if not (line.is_blank or line.indent or line.text.startswith("-") or _LABEL.match(line.text)):
                return 0
        return 0

    def _parse_line(self, number: int) -> int:  # noqa: PLR0911 - one return for each kind of line
        """Parse a line and return the number of the next."""
        line = self._lines[number]
        if line.is_blank:
            self._flush(number)
            return number + 1
        if fence := _FENCE.match(line.text):
            self._flush(number)
            return self._parse_code(number, fence[1])
        if heading := _ATX_HEADING.match(line.text):
            self._flush(number)
            title = line.skip(heading.end())
            self._add_heading(line, Line(title.begin, title.text.rstrip("#").rstrip()), len(heading[1]))
            return number + 1
        underline = _UNDERLINE.match(line.text)
        if underline and len(self._pending) == 1 and self._pending_kind == BlockKind.PARAGRAPH:
            (title,) = self._pending
            self._pending = []
            marked = Line(title.begin, title.text + " " * (line.end - title.end))
            self._add_heading(marked, title, 1 if "=" in underline[1] else 2)
            return number + 1
        if _TABLE_ROW.match(line.text):
            self._flush(number)
            return self._parse_table(number)
        if _RULE.match(line.text):
            self._flush(number)
            return number + 1
        mark = self._match_item(line, number)
        if mark is not None:
            self._flush(number)
            self._pending_kind = BlockKind.LIST_ITEM
            self._pending_begin = line.begin + line.indent
            self._pending = [line.skip(mark)]
            return number + 1
        mark_end = 0
        while quote := _QUOTE_MARK.match(line.text, mark_end):
            mark_end = quote.end()
        if mark_end:
            line = line.skip(mark_end)
        if line.is_blank:  # an empty line of a quotation
            self._flush(number)
            return number + 1
        if not self._pending:
            self._pending_kind = BlockKind.PARAGRAPH
            self._pending_begin = line.begin + line.indent
        self._pending.append(line)
        return number + 1

    def _match_item(self, line: Line, number: int) -> int | None:  # noqa: PLR0911
        """Return how many characters of an item of a list are a mark that is not shown, None if this is no item."""
        if bullet := _BULLET.match(line.text):
            return bullet.end()
        match = _NUMBER.match(line.text)
        if not match:
            return None
        in_list = bool(self.blocks) and self.blocks[-1].kind == BlockKind.LIST_ITEM
        in_list = in_list or (bool(self._pending) and self._pending_kind == BlockKind.LIST_ITEM)
        if self._pending and not in_list and match[2] not in _FIRST_NUMBERS:
            return None  # a number at the start of a wrapped line
        if not match[2].isdigit() and not in_list and match[2] not in _FIRST_NUMBERS:
            return None  # an initial
        if (
            not in_list
            and match[2] in ("A", "i")
            and not match[1]
            and not line.text.lstrip().startswith(f"{match[2]})")
        ):
            return None
        if self._is_section_title(line, number, line.text[match.end() :]):
            return None
        return line.indent

    def _is_section_title(self, line: Line, number: int, title: str) -> bool:
        """Return whether a line with a number is the heading of a section and no item of a list."""
        if len(title) > MAX_HEADING_CHARACTERS or title.endswith(_END_MARKS):
            return False
        if _is_upper_case(title):
            return True
        following = self._lines[number + 1] if number + 1 < len(self._lines) else None
        if following is None or following.is_blank:
            later = next((each for each in self._lines[number + 1 :][:3] if not each.is_blank), None)
            return later is not None and not later.indent and not _is_marked(later) and len(later.text) > len(line.text)
        return not following.indent and not _is_marked(following) and _is_break(line, following, len(following.text))

    def _parse_code(self, number: int, fence: str) -> int:
        lines = self._lines
        last = number + 1
        while last < len(lines) and not (
            lines[last].text.strip().startswith(fence) and not lines[last].text.strip(" `~")
        ):
            last += 1
        for paragraph in iterate_paragraphs(lines[number + 1 : last]):
            self._add_code(paragraph)
        return last + 1

    def _add_code(self, lines: Sequence[Line]) -> None:
        text = "\n".join(line.text for line in lines)
        runs = []
        position = 0
        for line in lines:
            runs.append((position, line.begin))
            position += len(line.text) + 1
        self._add(BlockKind.CODE, lines[0].begin, lines[-1].end, text, tuple(runs))

    def _parse_table(self, number: int) -> int:
        header: list[str] = []
        while number < len(self._lines) and _TABLE_ROW.match(self._lines[number].text):
            line = self._lines[number]
            cells = _split_cells(line.text)
            following = self._lines[number + 1].text if number + 1 < len(self._lines) else ""
            if not header and _TABLE_RULE.match(following):
                header = cells
                self._add_row(BlockKind.TABLE_HEADER, line, cells, [])
            elif not _TABLE_RULE.match(line.text):
                self._add_row(BlockKind.TABLE_ROW, line, cells, header)
            number += 1
        return number

    def _add_row(self, kind: BlockKind, line: Line, cells: Sequence[str], header: Sequence[str]) -> None:
        self._add(kind, line.begin + line.indent, line.end, render_row(cells, header), (), header=header)

    def _flush(self, number: int) -> None:
        """Add the block or blocks of the pending lines; `number` is that of the line after them."""
        lines, self._pending = self._pending, []
        if not lines:
            return
        if self._pending_kind == BlockKind.LIST_ITEM:
            self._add(BlockKind.LIST_ITEM, self._pending_begin, lines[-1].end, *join_lines(lines, self._vocabulary))
            return
        for kind, group in self._split_paragraph(lines, number):
            if kind == BlockKind.HEADING:
                self._add_heading(group[0], group[0], 2)
            elif kind == BlockKind.PARAGRAPH and _PICTURE.match(group[0].text.strip()):
                begin = group[0].begin + group[0].indent
                self._add(BlockKind.CAPTION, begin, group[-1].end, *join_lines(group, self._vocabulary))
            elif kind == BlockKind.TABLE_ROW:
                self._add_columns(group)
            else:
                begin = group[0].begin + group[0].indent
                self._add(kind, begin, group[-1].end, *join_lines(group, self._vocabulary))

    def _split_paragraph(self, lines: list[Line], number: int) -> list[tuple[BlockKind, list[Line]]]:
        contents = sum(1 for line in lines if _CONTENTS_LINE.match(line.text.strip()))
        if contents == len(lines) or (contents >= MIN_MESSAGES and contents >= LOG_SHARE * len(lines)):
            return [(BlockKind.CONTENTS_LINE, [line]) for line in lines]
        if _find_columns(lines):
            return [(BlockKind.TABLE_ROW, lines)]
        if labelled := _split_labelled(lines):
            return labelled
        groups = _split_groups(lines)
        kinds: list[tuple[BlockKind, list[Line]]] = []
        for index, group in enumerate(groups):
            is_alone = len(groups) == 1
            is_last = index == len(groups) - 1
            following_indent = 0 if is_last else groups[index + 1][0].indent
            is_title = len(group) == 1 and self._is_title(
                group[0], number, is_alone=is_alone, is_last=is_last, following_indent=following_indent
            )
            kinds.append((BlockKind.HEADING if is_title else BlockKind.PARAGRAPH, group))
        return kinds

    def _is_title(self, line: Line, number: int, *, is_alone: bool, is_last: bool, following_indent: int) -> bool:
        """Return whether a line between deliberate line breaks is a heading."""
        title = line.text.strip()
        is_word = title.isupper() and title.isalpha() and len(title) > 2
        # A heading of a manual page in a script without cases.
        is_uncased = not line.indent and following_indent > 2 and title.isalpha() and _has_no_lower_case(title)
        is_section_word = (is_word or is_uncased) and not is_last
        is_upper_case = is_section_word or _is_upper_case(title)
        if len(title) > MAX_HEADING_CHARACTERS or len(title.split()) > MAX_HEADING_WORDS:
            return False
        following = next((each for each in self._lines[number:][:5] if not each.is_blank), None)
        has_end_mark = title.endswith(_END_MARKS) and not (title.endswith(".") and is_upper_case)
        if has_end_mark or (is_last and following is None):  # a sentence, or nothing stands under it
            return False
        if is_upper_case or (_SECTION_TITLE.match(title) and not is_last):
            return True
        is_sentence = _SPEECH_LIKE.match(title) or title.rstrip(_CLOSING_MARKS).endswith((*_END_MARKS, "--"))
        is_spoken = is_sentence or title[:1].islower() or line.indent > 8
        if not self._has_titles or not is_alone or is_spoken or following is None:
            return False
        # The first line is the title of the document.
        return not self.blocks or len(following.text) > max(len(title), 40) or _is_marked(following)

    def _add_columns(self, lines: Sequence[Line]) -> None:
        rows = [_GAP.split(line.text.strip()) for line in lines]
        has_header = not any(map(str.isdigit, "".join(rows[0]))) and all(
            any(map(str.isdigit, "".join(row))) for row in rows[1:]
        )
        header = rows[0] if has_header else []
        for index, (line, cells) in enumerate(zip(lines, rows, strict=True)):
            if index == 0 and has_header:
                self._add_row(BlockKind.TABLE_HEADER, line, cells, [])
            else:
                self._add_row(BlockKind.TABLE_ROW, line, cells, header)

    def _add_heading(self, marked: Line, title: Line, level: int) -> None:
        while self._headings and self._headings[-1][0] >= level:
            self._headings.pop()
        text, runs = join_lines([title], frozenset())
        self._add(BlockKind.HEADING, marked.begin + marked.indent, marked.end, text, runs)
        if text:
            self._headings.append((level, text))

    def _add(
        self,
        kind: BlockKind,
        begin: int,
        end: int,
        text: str,
        runs: tuple[tuple[int, int], ...],
        *,
        header: Sequence[str] = (),
    ) -> None:
        if any(character.isalnum() for character in text):
            path = tuple(heading for _, heading in self._headings)
            self.blocks.append(Block(kind, begin, end, text, runs, path, tuple(header)))


def _is_upper_case(title: str) -> bool:
    letters = [character for character in title if character.isalpha()]
    return len(letters) >= 5 and all(letter.isupper() for letter in letters)


def _has_no_lower_case(text: str) -> bool:
    """Return whether a short text is in upper case, or in a script without cases."""
    return text.isupper() or (
        len(text) <= MAX_UNCASED_CHARACTERS and text == text.upper() == text.lower() and not text.endswith(_END_MARKS)
    )


def _is_marked(line: Line) -> bool:
    return any(mark.match(line.text) for mark in (_BULLET, _NUMBER, _TABLE_ROW, _FENCE, _ATX_HEADING))


def _split_cells(row: str) -> list[str]:
    row = row.strip().removeprefix("|").removesuffix("|")
    return [cell.strip().replace("\\|", "|").strip("`*_") for cell in re.split(r"(?<!\\)\|", row)]


def _is_break(line: Line, following: Line, width: int) -> bool:
    """Return whether a line ends before the margin: the first word of the next would have fitted."""
    first_word = following.text.split(maxsplit=1)[0]
    if not (first_word[0].isupper() or first_word[0].isdigit() or first_word[0] in '"“«‘([*-–—§$€£'):
        return False
    last_word = line.text.rsplit(maxsplit=1)[-1]
    if last_word.endswith((",", "-", "–", "—", "(", "&")) or last_word.lower() in _OPEN_WORDS:
        return False
    return not _is_wrapped(line, following, width)


def _is_section(line: Line, following: Line) -> bool:
    """Return whether a line is the heading of a section of a manual page."""
    return not line.indent and following.indent > 2 and _has_no_lower_case(line.text)


def _split_groups(lines: Sequence[Line]) -> list[list[Line]]:
    """Return the lines of a paragraph in groups: a heading, terms with their descriptions, or lines up to a break."""
    if len(lines) > 1 and _is_section(lines[0], lines[1]):
        return [[lines[0]], *_split_groups(lines[1:])]
    return _split_hanging(lines) or _split_at_breaks(lines)


def _split_at_breaks(lines: Sequence[Line]) -> list[list[Line]]:
    """Return the lines of a paragraph in groups that end where a line was broken on purpose."""
    width = max(len(line.text) for line in lines)
    groups = [[lines[0]]]
    for line, following in itertools.pairwise(lines):
        starts_upper = following.text.strip()[0].isupper() and not _is_upper_case(following.text)
        is_title = _is_section(line, following) or (starts_upper and _is_upper_case(line.text))
        if is_title or _is_break(line, following, width):
            groups.append([])
        groups[-1].append(following)
    return groups


def _is_wrapped(line: Line, following: Line, width: int) -> bool:
    """Return whether the first word of the next line would not have fitted."""
    return len(line.text) + 1 + len(following.text.split(maxsplit=1)[0]) + 2 >= width


def _split_hanging(lines: Sequence[Line]) -> list[list[Line]]:
    """Return lines in groups of a term and its indented description, as manual pages have them, or nothing."""
    base = lines[0].indent
    is_start = [line.indent == base for line in lines]
    if len(lines) < MIN_HANGING_LINES or any(line.indent < base for line in lines):
        return []
    deeper = {line.indent for line in lines if line.indent > base}
    # Code has more than one level, or marks of what is nested.
    is_nested = any(line.indent == base and line.text.endswith((":", "{")) for line in lines)
    if len(deeper) != 1 or min(deeper) < base + MIN_HANGING_INDENT or is_nested:
        return []
    width = max(len(line.text) for line in lines)
    groups: list[list[Line]] = []
    for number, line in enumerate(lines):
        if is_start[number] and not (number and is_start[number - 1] and _is_wrapped(lines[number - 1], line, width)):
            groups.append([line])
        else:
            groups[-1].append(line)
    # Verses go on after a comma.
    if any(group[-1].text.endswith((",", ";")) for group in groups[:-1]):
        return []
    # Every term has a description, below it or behind a gap.
    alone = sum(1 for group in groups if len(group) == 1 and not _GAP.search(group[0].text.strip()))
    return groups if len(groups) > 1 and alone <= len(groups) // 2 else []


def _split_labelled(lines: Sequence[Line]) -> list[tuple[BlockKind, list[Line]]]:
    """Return lines such as "Present: Ann Low", each with its indented continuation, or nothing if most are others."""
    labels = [_LABEL.match(line.text.strip()) for line in lines]
    base = min(line.indent for line in lines)
    starts = [bool(label) and line.indent == base for label, line in zip(labels, lines, strict=True)]
    unindented = sum(1 for line in lines if line.indent == base)
    # Values below each other show a form, whatever follows.
    aligned = sum(
        1 for label, line in zip(labels, lines, strict=True) if label and _ALIGNED_LABEL.match(line.text.strip())
    )
    if not starts[0] or sum(starts) < 2 or (aligned < 2 and 4 * sum(starts) < 3 * unindented):
        return []
    groups: list[tuple[BlockKind, list[Line]]] = []
    for line, label, is_start in zip(lines, labels, starts, strict=True):
        if line.indent == base and not is_start and groups and groups[-1][0] == BlockKind.PARAGRAPH:
            groups[-1][1].append(line)
        elif line.indent == base and not is_start:
            groups.append((BlockKind.PARAGRAPH, [line]))
        elif is_start:
            is_field = label is not None and label[1].lower() in _MAIL_FIELDS
            groups.append((BlockKind.MAIL_LINE if is_field else BlockKind.LINE, [line]))
        else:
            groups[-1][1].append(line)
    return groups


def _find_columns(lines: Sequence[Line]) -> bool:
    """Return whether lines are the rows of a table: as many cells each, below each other."""
    if len(lines) < MIN_ROWS:
        return False
    rows = [_find_cells(line.text) for line in lines]
    if len(rows[0]) < 2 or any(len(row) != len(rows[0]) for row in rows):
        return False
    if len(rows[0]) == 2 and len(rows) <= MIN_ROWS:
        return False
    for column in range(1, len(rows[0])):
        starts = {row[column][0] for row in rows}
        ends = {row[column][1] for row in rows}
        # The name of a column may stand elsewhere than its numbers.
        if min(len(starts), len(ends)) > (1 if len(rows) <= MIN_ROWS else 2):
            return False
    return True


def _find_cells(text: str) -> list[tuple[int, int]]:
    cells = []
    begin = len(text) - len(text.lstrip())
    for gap in _GAP.finditer(text, begin):
        cells.append((begin, gap.start()))
        begin = gap.end()
    return [*cells, (begin, len(text))]
