"""The world of facts that the sample corpus talks about: what is true, and how people say it.

Each table is two files of the same name in ``tables/``:

* ``countries.tsv`` holds what is true: one subject a line, one column a relation, an empty
  cell where there is no single right answer (South Africa has three capitals).
* ``countries.toml`` holds how it is said: ``kind`` names the subjects, and one section per
  column lists statements, questions and answers with the slots ``{s}`` and ``{o}``.

A new table needs no code: put both files there. Everything is checked when it is read, and an
error names the file and the line (TSV) or the section (TOML).

One more table, ``aliases.tsv``, holds the other right forms of an answer: the relation ("*" for
all), the answer, and its aliases, parted by spaces. An alias is never a name of its own there.
"""

import tomllib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable

SUBJECT_SLOT, OBJECT_SLOT = "{s}", "{o}"
FULL_STOP = "。"
ALIASES, ANY_RELATION = "aliases", "*"
_FOLDER = files("tinyllm_lib.course.world") / "tables"

# The phrasings of a relation: field -> (how many at least, slots of each, how each must end).
_SEEN = {
    "statements": (8, (SUBJECT_SLOT, OBJECT_SLOT), FULL_STOP),
    "questions": (6, (SUBJECT_SLOT,), ""),
    "unseen_questions": (3, (SUBJECT_SLOT,), ""),
    "answers": (2, (OBJECT_SLOT,), OBJECT_SLOT + FULL_STOP),
}
_REVERSE = {
    "reverse_questions": (6, (OBJECT_SLOT,), ""),
    "reverse_unseen_questions": (3, (OBJECT_SLOT,), ""),
    "reverse_answers": (2, (SUBJECT_SLOT,), SUBJECT_SLOT + FULL_STOP),
}


@dataclass(frozen=True)
class Relation:
    """One kind of fact, such as "the capital of a country", and the ways to say and to ask it.

    Templates are filled with :meth:`fill`. Statements run in both directions; ``questions`` ask for
    the object; ``unseen_questions`` are other wordings that only the exam uses. The ``reverse_*``
    fields ask for the subject and are empty unless each object belongs to one subject only.
    """

    name: str  # "country.capital"
    subject_kind: str  # "country"
    object_kind: str  # "city"
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    unseen_questions: tuple[str, ...]
    answers: tuple[str, ...]  # each ends with "{o}。"
    reverse_questions: tuple[str, ...]
    reverse_unseen_questions: tuple[str, ...]
    reverse_answers: tuple[str, ...]  # each ends with "{s}。"
    completion: str  # "{s}的首都是": a base model goes on with the object
    follow_up: str  # "那{s}呢？"


@dataclass(frozen=True)
class Fact:
    """One true sentence of the world: ``relation(subject) = object``."""

    relation: Relation
    subject: str
    object: str

    def fill(self, template: str) -> str:
        """The template with this fact's subject and object in its slots."""
        return template.replace(SUBJECT_SLOT, self.subject).replace(OBJECT_SLOT, self.object)


@dataclass(frozen=True)
class Table:
    """A table as read from disk: its relations, and for each of its subjects the filled cells."""

    kind: str
    relations: dict[str, Relation]  # column -> relation
    rows: dict[str, dict[str, str]]  # subject -> {column: object}


def relations() -> tuple[Relation, ...]:
    """All relations of the world, table by table in alphabetical order of the file names."""
    return tuple(relation for table in _tables() for relation in table.relations.values())


@cache
def facts(kind: str | None = None) -> tuple[Fact, ...]:
    """All facts, or those about one kind of subject ("country", "element", ...), in a fixed order.

    Raises:
        ValueError: no table has this kind.
    """
    return tuple(
        Fact(relation, subject, cells[column])
        for table in _tables(kind)
        for column, relation in table.relations.items()
        for subject, cells in table.rows.items()
        if column in cells
    )


def aliases(relation: str, answer: str) -> tuple[str, ...]:
    """The other forms of an answer that are right, too (贵州简称贵, 也简称黔); often none.

    Args:
        relation: the name of the relation that the question is about ("province.abbreviation").
        answer: an object of it, or a subject where the question is reversed.
    """
    known = _all_aliases()
    return known.get((relation, answer), ()) + known.get((ANY_RELATION, answer), ())


def read_table(tsv: Traversable, toml: Traversable) -> Table:
    """Read and check one table and its phrasings.

    Raises:
        ValueError: a cell, a row or a template is not as the module's docstring says; the message
            names the file and the line or section.
    """
    rows = _read_rows(tsv)
    phrasings = tomllib.loads(toml.read_text(encoding="utf-8"))
    kind = phrasings.pop("kind", None)
    if not isinstance(kind, str):
        told = 'no kind of subject. Begin the file with one: kind = "country".'
        raise ValueError(f"{toml.name}: {told}")
    columns = _columns(tsv)[1:]
    if set(columns) != set(phrasings):
        raise ValueError(
            f"{toml.name}: its sections are {sorted(phrasings)}, but the columns of {tsv.name} are "
            f"{sorted(columns)}. Give every column after the first a section of the same name."
        )
    read = {column: _relation(toml.name, kind, column, phrasings[column]) for column in columns}
    for column, relation in read.items():
        if relation.reverse_questions:
            _check_one_to_one(tsv, column, rows)
    return Table(kind, read, {subject: cells for _, subject, cells in rows})


def read_aliases(tsv: Traversable, facts: Iterable[Fact]) -> dict[tuple[str, str], tuple[str, ...]]:
    """Read the table of aliases and check it against the facts: (relation, answer) -> aliases.

    Raises:
        ValueError: a row gives aliases of what no fact names, or an alias that is the name of
            something else in the same relation; the message names the file and the line.
    """
    names: dict[str, set[str]] = defaultdict(set)
    for fact in facts:
        names[fact.relation.name] |= {fact.subject, fact.object}
    read: dict[tuple[str, str], tuple[str, ...]] = {}
    for number, (relation, answer, forms) in _read_cells(tsv):
        where = f"{tsv.name} line {number}"
        among = names.values() if relation == ANY_RELATION else [names.get(relation, set())]
        if not (named := [group for group in among if answer in group]):
            told = f"no fact of {relation} names {answer}. Mend the name or remove the line."
            raise ValueError(f"{where}: {told}")
        if (relation, answer) in read:
            raise ValueError(f"{where}: {relation} {answer} is there already. Keep one.")
        for alias in forms.split():
            if any(alias in group for group in named):
                told = f"{alias}, an alias of {answer}, is a name of its own in {relation}"
                raise ValueError(f"{where}: {told}. Remove it.")
        read[relation, answer] = tuple(forms.split())
    return read


@cache
def _all_aliases() -> dict[tuple[str, str], tuple[str, ...]]:
    return read_aliases(_FOLDER / f"{ALIASES}.tsv", facts())


@cache
def _all_tables() -> tuple[Table, ...]:
    names = sorted(entry.name.removesuffix(".tsv") for entry in _FOLDER.iterdir())
    tables = (name for name in names if "." not in name and name != ALIASES)
    return tuple(read_table(_FOLDER / f"{name}.tsv", _FOLDER / f"{name}.toml") for name in tables)


def _tables(kind: str | None = None) -> tuple[Table, ...]:
    found = tuple(table for table in _all_tables() if kind in (None, table.kind))
    if not found:
        known = ", ".join(sorted({table.kind for table in _all_tables()}))
        raise ValueError(f"no facts about {kind!r}. The kinds of subject are: {known}.")
    return found


def _columns(tsv: Traversable) -> list[str]:
    return tsv.read_text(encoding="utf-8").split("\n", 1)[0].split("\t")


def _read_cells(tsv: Traversable) -> Iterator[tuple[int, list[str]]]:
    """The rows as (line number, cells), one cell for each column of the header."""
    header, *lines = tsv.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    columns = header.split("\t")
    for number, line in enumerate(lines, start=2):
        where = f"{tsv.name} line {number}"
        cells = line.split("\t")
        if len(cells) != len(columns):
            raise ValueError(
                f"{where}: {len(cells)} cells, but the header names {len(columns)} columns"
                f" ({', '.join(columns)}). Part cells by one tab, and leave an unknown one empty."
            )
        for column, cell in zip(columns, cells, strict=True):
            if cell != cell.strip():
                told = f"white space around {cell!r} in column {column}. Remove it."
                raise ValueError(f"{where}: {told}")
        yield number, cells


def _read_rows(tsv: Traversable) -> list[tuple[int, str, dict[str, str]]]:
    """The rows as (line number, subject, {column: object}), without the empty cells."""
    columns = _columns(tsv)[1:]
    rows: list[tuple[int, str, dict[str, str]]] = []
    first_seen: dict[str, int] = {}
    for number, (subject, *cells) in _read_cells(tsv):
        where = f"{tsv.name} line {number}"
        if not subject:
            told = "the first cell, the subject, is empty. Name it or remove the line."
            raise ValueError(f"{where}: {told}")
        if subject in first_seen:
            told = f"{subject} is already in line {first_seen[subject]}. Keep one."
            raise ValueError(f"{where}: {told}")
        first_seen[subject] = number
        filled = {column: cell for column, cell in zip(columns, cells, strict=True) if cell}
        rows.append((number, subject, filled))
    return rows


def _check_one_to_one(
    tsv: Traversable, column: str, rows: list[tuple[int, str, dict[str, str]]]
) -> None:
    owner: dict[str, tuple[int, str]] = {}
    for number, subject, cells in rows:
        if column not in cells:
            continue
        line, other = owner.setdefault(cells[column], (number, subject))
        if other != subject:
            raise ValueError(
                f"{tsv.name} line {number}: {column} {cells[column]} of {subject} is also that of"
                f" {other} (line {line}), so a question for its subject has two right answers."
                f" Remove the reverse questions of {column}, or leave one of the two cells empty."
            )


def _relation(file: str, kind: str, column: str, section: dict) -> Relation:
    where = f"{file} [{column}]"
    rules = _SEEN | (_REVERSE if any(field in section for field in _REVERSE) else {})
    known = {"object_kind", "completion", "follow_up", *_SEEN, *_REVERSE}
    if unknown := sorted(set(section) - known):
        names = ", ".join(sorted(known))
        raise ValueError(f"{where}: unknown {', '.join(unknown)}. The names are: {names}.")
    if missing := sorted({"object_kind", "completion", *rules} - set(section)):
        it = "it" if len(missing) == 1 else "them"
        raise ValueError(f"{where}: no {', '.join(missing)}. Add {it}.")
    for field, (least, slots, end) in rules.items():
        templates = section[field]
        if len(templates) < least:
            raise ValueError(f"{where}: {len(templates)} {field}, but at least {least} are needed.")
        for template in templates:
            _check_template(f"{where} {field}", template, slots, end)
        if len(set(templates)) < len(templates):
            raise ValueError(f"{where}: the same text stands twice in {field}. Keep each once.")
    for seen in ("questions", "reverse_questions"):
        unseen = seen.replace("questions", "unseen_questions")
        if both := set(section.get(seen, ())) & set(section.get(unseen, ())):
            told = f"{both.pop()!r} is in {seen} and in {unseen}"
            raise ValueError(f"{where}: {told}. Word the unseen question in a new way.")
    for field in ("completion", "follow_up"):
        _check_template(f"{where} {field}", section.get(field, SUBJECT_SLOT), (SUBJECT_SLOT,), "")
    templates = {field: tuple(section.get(field, ())) for field in (*_SEEN, *_REVERSE)}
    return Relation(
        name=f"{kind}.{column}",
        subject_kind=kind,
        object_kind=section["object_kind"],
        completion=section["completion"],
        follow_up=section.get("follow_up", "那{s}呢？"),
        **templates,
    )


def _check_template(where: str, template: str, slots: tuple[str, ...], end: str) -> None:
    for slot in slots:
        if slot not in template:
            raise ValueError(f"{where}: {template!r} has no {slot}. Put {' and '.join(slots)} in.")
    if not template.endswith(end):
        raise ValueError(f"{where}: {template!r} must end with {end!r}.")
    left = template.replace(SUBJECT_SLOT, "").replace(OBJECT_SLOT, "")
    if "{" in left or "}" in left:
        slots = f"{SUBJECT_SLOT} and {OBJECT_SLOT}"
        raise ValueError(f"{where}: {template!r} has a slot other than {slots}.")
