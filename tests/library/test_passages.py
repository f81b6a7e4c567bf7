"""A passage has the sentences that were added to the library."""

from keywise.library.passages import Passage


def test_rows_of_a_passage_stay_sentences_of_their_own():
    passage = Passage("sales.csv", 30, "North,2023,x\nSouth,2024,y", 1.0, ((0, 12), (13, 25)))
    assert passage.source.sentences == ((0, 12), (13, 25))
    assert [quote.text for quote in passage.source.quotes] == ["North,2023,x", "South,2024,y"]
