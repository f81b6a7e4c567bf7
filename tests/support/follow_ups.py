"""Short texts, and follow-up questions about them with the sentence that answers each."""

from typing import NamedTuple


class FollowUp(NamedTuple):
    """A question, its answer, a follow-up, and words of the sentence that answers it."""

    text: str
    question: str
    answer: str
    follow_up: str
    sentence: str


ROCK = """The lamp was lit in 1862. Its first keeper was Ann Low. She had been a baker in Leith before. She
left the rock in 1871 because of her bad eyes. The second keeper was Tom Reed. He had been a sailor
on a whaler. He left the rock in 1890 after a quarrel with the harbour board. The tower is 31 metres
tall. The boathouse is 6 metres tall and was built by the Stevenson brothers. The cottage has four
rooms. It was painted white in 1902. The harbour of Leith has two cranes, which were made in Hull.
They were scrapped in 1950. Smoking is not allowed in the tower. The warden decides about visits,
and he lives in the village. A visit costs 4 euros for adults and 2 euros for children."""

MANUAL = """# Manual

## Pump

The pump weighs 14 kilograms. Its motor needs 230 volts. Check its oil every month. It is made by
Grundig in Bremen. The warranty of the pump lasts three years.

## Filter

The filter weighs 2 kilograms. Its cartridge must be replaced twice a year. It is made by Kress in
Ulm. The warranty of the filter lasts one year.

## Heater

The heater weighs 9 kilograms. Its element needs 400 volts. It is made by Vaillant in Remscheid. The
warranty of the heater lasts five years."""

INSEL = """Der Leuchtturm wurde 1862 gebaut. Sein erster Wärter war Karl Lohse. Er war vorher Bäcker in Emden.
Er verließ die Insel 1871 wegen seiner Augen. Der zweite Wärter war Jan Brandt. Er war vorher
Matrose. Er ging 1890 nach einem Streit. Der Turm ist 31 Meter hoch. Das Bootshaus ist 6 Meter hoch."""

FOLLOW_UPS = [
    FollowUp(ROCK, "Who was the first keeper?", "Ann Low", "And what was her job before?", "baker"),
    FollowUp(ROCK, "Who was the first keeper?", "Ann Low", "When did she leave?", "1871"),
    FollowUp(ROCK, "Who was the first keeper?", "Ann Low", "Why?", "first keeper"),
    FollowUp(ROCK, "When did Ann Low leave the rock?", "1871", "Why?", "bad eyes"),
    FollowUp(ROCK, "Who was the second keeper?", "Tom Reed", "And what was his job before?", "sailor"),
    FollowUp(ROCK, "Who was the second keeper?", "Tom Reed", "When did he leave?", "1890"),
    FollowUp(ROCK, "When did Tom Reed leave the rock?", "1890", "Why did he leave?", "quarrel"),
    FollowUp(ROCK, "How tall is the tower?", "31 metres", "And the boathouse?", "6 metres"),
    FollowUp(ROCK, "How many rooms has the cottage?", "four", "When was it painted?", "1902"),
    FollowUp(ROCK, "How many cranes has the harbour?", "two", "Where were they made?", "Hull"),
    FollowUp(ROCK, "How many cranes has the harbour?", "two", "And when were they scrapped?", "1950"),
    FollowUp(
        ROCK,
        "Is smoking allowed in the tower?",
        "Smoking is not allowed in the tower.",
        "And who decides about visits?",
        "warden",
    ),
    FollowUp(ROCK, "What does a visit cost for adults?", "4 euros", "And for children?", "2 euros"),
    FollowUp(ROCK, "Who decides about visits?", "The warden", "Where does he live?", "village"),
    FollowUp(MANUAL, "How much does the filter weigh?", "2 kilograms", "Who makes it?", "Kress"),
    FollowUp(MANUAL, "How much does the filter weigh?", "2 kilograms", "How long is its warranty?", "one year"),
    FollowUp(MANUAL, "How much does the heater weigh?", "9 kilograms", "Who makes it?", "Vaillant"),
    FollowUp(MANUAL, "How much does the heater weigh?", "9 kilograms", "How long is the warranty?", "five years"),
    FollowUp(MANUAL, "How much does the heater weigh?", "9 kilograms", "How many volts does it need?", "400"),
    FollowUp(MANUAL, "How much does the pump weigh?", "14 kilograms", "And who makes it?", "Grundig"),
    FollowUp(MANUAL, "How much does the pump weigh?", "14 kilograms", "And the filter?", "2 kilograms"),
    FollowUp(INSEL, "Wer war der erste Wärter?", "Karl Lohse", "Und was war er vorher?", "Bäcker"),
    FollowUp(INSEL, "Wer war der zweite Wärter?", "Jan Brandt", "Und was war er vorher?", "Matrose"),
    FollowUp(INSEL, "Wer war der zweite Wärter?", "Jan Brandt", "Wann ging er?", "1890"),
    FollowUp(INSEL, "Wie hoch ist der Turm?", "31 Meter", "Und das Bootshaus?", "6 Meter"),
]
