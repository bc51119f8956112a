"""Tables and paragraphs of 80 columns."""

from mergekit.cli.tables import paragraph, table


def test_a_wide_table_goes_on_below_with_its_first_column():
    head = ["layer", *(f"column{number}" for number in range(12))]
    lines = list(table(head, [["0", *("0.123",) * 12]]))
    assert max(map(len, lines)) <= 80
    blocks = "\n".join(lines).split("\n\n")
    assert len(blocks) == 2
    assert [line.split()[0] for block in blocks for line in block.splitlines()] == ["layer", "0"] * 2
    shown = [name for block in blocks for name in block.splitlines()[0].split()[1:]]
    assert shown == head[1:]


def test_a_last_column_of_text_may_be_long():
    (head, line) = table(["share", "name"], [["1", "n" * 90]], left=0, last=True)
    assert head == "share  name"
    assert line == "    1  " + "n" * 90


def test_paragraphs_are_wrapped_behind_their_label():
    lines = list(paragraph("label", "word " * 30, indent=10))
    assert lines[0].startswith("label     word")
    assert all(line.startswith(" " * 10 + "word") for line in lines[1:])
    assert max(map(len, lines)) <= 80
    assert list(paragraph("a long label", "word", indent=4)) == ["a long label", "    word"]
