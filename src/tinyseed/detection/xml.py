"""Parses XML files of unknown origin: namespaces are dropped, and what could exhaust memory is refused."""

from xml.etree import ElementTree as ET
from xml.parsers import expat

_DEEPEST = 50


def parse(data: bytes) -> ET.Element:
    """The root of an XML document; names of elements are without their namespace's prefix.

    No entity is expanded but XML's own, and nothing is read but these bytes.

    Raises:
        ValueError: it is not well-formed, declares entities, or is nested deeper than 50 elements.

    >>> parse(b'<v:a xmlns:v="urn:v"><v:b>1 &lt; 2</v:b></v:a>').findtext("b")
    '1 < 2'
    """
    builder = ET.TreeBuilder()
    depth = 0

    def start(name: str, attributes: object) -> None:
        nonlocal depth
        del attributes
        depth += 1
        if depth > _DEEPEST:
            raise ValueError(f"nested deeper than {_DEEPEST} elements")
        builder.start(_local(name), {})

    def end(name: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(_local(name))

    def entity(*declaration: object) -> None:
        raise ValueError(f"it declares the entity {declaration[0]}, which is not supported")

    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = builder.data
    parser.EntityDeclHandler = entity
    try:
        parser.Parse(data, True)
    except (expat.ExpatError, LookupError) as error:  # LookupError: an unknown encoding
        raise ValueError(str(error)) from error
    return builder.close()


def fields(element: ET.Element) -> dict[str, object]:
    """The children of an element by name: their text, or their own children; of several the first counts.

    >>> fields(parse(b"<a><b>1</b><c><d> 2 </d></c><b>3</b></a>"))
    {'b': '1', 'c': {'d': '2'}}
    """
    found: dict[str, object] = {}
    for child in element:
        found.setdefault(child.tag, fields(child) if len(child) else (child.text or "").strip())
    return found


def _local(name: str) -> str:
    return name.rpartition(":")[2]
