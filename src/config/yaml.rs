//! YAML text to a [`Node`], within bounds: depth, number of values, and what aliases may copy.

use std::{borrow::Cow, collections::BTreeMap};

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, ScanError, Tag};

use super::tree::{Entry, Node, Place, Scalar, SyntaxError, Value};

/// Deepest nesting; the deepest key there is has 6.
const DEPTH_MAX: usize = 32;
/// Most values, those that aliases repeat included.
const NODES_MAX: usize = 100_000;

/// Reads one document.
pub(super) fn read(text: &str) -> Result<Node, SyntaxError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut builder = Builder::default();
    let mut parser = Parser::new_from_str(text);
    while let Some(event) = parser.next_event() {
        let (event, span) = event.map_err(|error| explain(&error))?;
        builder.take(event, span.start)?;
    }
    Ok(builder.document.unwrap_or(Node {
        place: Place { line: 1, column: 1 },
        value: Value::Scalar(Scalar { text: String::new(), quoted: false }),
    }))
}

#[derive(Default)]
struct Builder {
    open: Vec<Open>,
    anchors: BTreeMap<usize, Node>,
    nodes: usize,
    documents: usize,
    document: Option<Node>,
}

/// A list or map that is being read.
struct Open {
    place: Place,
    anchor: usize,
    content: Content,
}

enum Content {
    List(Vec<Node>),
    Map(Vec<Entry>, Option<(String, Place)>),
}

impl Builder {
    fn take(&mut self, event: Event<'_>, mark: Marker) -> Result<(), SyntaxError> {
        let place = place(&mark);
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => Ok(()),
            Event::DocumentStart(_) => {
                self.documents += 1;
                if self.documents > 1 {
                    return refuse(
                        place,
                        "a second document begins here",
                        "keep one document in the file: remove the line \"---\"",
                    );
                }
                Ok(())
            }
            Event::Alias(anchor) => {
                let Some(node) = self.anchors.get(&anchor).cloned() else {
                    return refuse(place, "an alias inside of what it repeats", "write the values out");
                };
                self.count(&node, place)?;
                self.add(node, 0)
            }
            Event::Scalar(text, style, anchor, tag) => {
                untagged(tag.as_ref(), place)?;
                let scalar = Scalar { text: text.into_owned(), quoted: style != ScalarStyle::Plain };
                self.add(Node { place, value: Value::Scalar(scalar) }, anchor)
            }
            Event::SequenceStart(anchor, tag) => self.begin(place, anchor, tag.as_ref(), Content::List(Vec::new())),
            Event::MappingStart(anchor, tag) => self.begin(place, anchor, tag.as_ref(), Content::Map(Vec::new(), None)),
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                None => Ok(()),
                Some(open) => {
                    let value = match open.content {
                        Content::List(items) => Value::List(items),
                        Content::Map(entries, _) => Value::Map(entries),
                    };
                    self.add(Node { place: open.place, value }, open.anchor)
                }
            },
        }
    }

    fn begin(
        &mut self,
        place: Place,
        anchor: usize,
        tag: Option<&Cow<'_, Tag>>,
        content: Content,
    ) -> Result<(), SyntaxError> {
        untagged(tag, place)?;
        if self.open.len() >= DEPTH_MAX {
            return refuse(
                place,
                &format!("nested deeper than {DEPTH_MAX} levels"),
                "flatten it; no key lies that deep",
            );
        }
        self.open.push(Open { place, anchor, content });
        Ok(())
    }

    /// Puts a finished node where it belongs.
    fn add(&mut self, node: Node, anchor: usize) -> Result<(), SyntaxError> {
        self.nodes += 1;
        self.bounded(node.place)?;
        if anchor > 0 {
            self.count(&node, node.place)?;
            self.anchors.insert(anchor, node.clone());
        }
        match self.open.last_mut().map(|open| &mut open.content) {
            None => self.document = Some(node),
            Some(Content::List(items)) => items.push(node),
            Some(Content::Map(entries, key)) => match key.take() {
                Some((key, place)) => entries.push(Entry { key, place, node }),
                None => match node.value {
                    Value::Scalar(scalar) => *key = Some((scalar.text, node.place)),
                    Value::List(_) | Value::Map(_) => {
                        return refuse(
                            node.place,
                            "a list or section where a key is expected",
                            "write `key: value`, and put text that holds '{' or '[' in quotes",
                        );
                    }
                },
            },
        }
        Ok(())
    }

    /// Counts a copy, so that aliases of aliases cannot grow without end.
    fn count(&mut self, node: &Node, place: Place) -> Result<(), SyntaxError> {
        let mut waiting = vec![node];
        while let Some(node) = waiting.pop() {
            self.nodes += 1;
            self.bounded(place)?;
            match &node.value {
                Value::Scalar(_) => {}
                Value::List(items) => waiting.extend(items),
                Value::Map(entries) => waiting.extend(entries.iter().map(|entry| &entry.node)),
            }
        }
        Ok(())
    }

    fn bounded(&self, place: Place) -> Result<(), SyntaxError> {
        if self.nodes > NODES_MAX {
            return refuse(
                place,
                &format!("more than {NODES_MAX} values, those repeated by aliases included"),
                "make it shorter",
            );
        }
        Ok(())
    }
}

fn untagged(tag: Option<&Cow<'_, Tag>>, place: Place) -> Result<(), SyntaxError> {
    match tag {
        None => Ok(()),
        Some(tag) => refuse(
            place,
            &format!("the tag {:?} has no meaning here", tag.to_string()),
            "remove it; put text that begins with '!' in quotes",
        ),
    }
}

fn refuse<T>(place: Place, problem: &str, fix: &str) -> Result<T, SyntaxError> {
    Err(SyntaxError { place, problem: problem.to_owned(), fix: fix.to_owned() })
}

fn place(mark: &Marker) -> Place {
    Place { line: mark.line(), column: mark.col() + 1 }
}

/// What people most often meant, by what the parser says.
fn explain(error: &ScanError) -> SyntaxError {
    let info = error.info();
    let fix = if info.contains("tab") {
        "indent with spaces, not tabs"
    } else if info.contains("alias") || info.contains("anchor") {
        "put text that begins with '*' or '&' in quotes, as in type: \"*.created\""
    } else if info.contains("quoted scalar") {
        "close the quotes, and in double quotes write a backslash as \\\\"
    } else if info.contains("flow") || info.contains("','") {
        "close the bracket, and put text that holds '{', '[' or ',' in quotes, as in [\"${NAME}\"]"
    } else {
        "check the indentation and the ':' behind each key; put text that holds ': ' or ' #' in quotes"
    };
    SyntaxError { place: place(error.marker()), problem: format!("this is not YAML: {info}"), fix: fix.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aliases_are_copied_within_bounds() {
        assert!(read("a: &x {b: 1}\nc: *x\n").is_ok());
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..10 {
            let below = format!("*a{}", level - 1);
            bomb += &format!("a{level}: &a{level} [{}]\n", [below.as_str(); 10].join(", "));
        }
        let error = read(&bomb).expect_err("a bomb");
        assert!(error.problem.contains("more than"), "{error:?}");
    }

    #[test]
    fn depth_and_count_are_bounded() {
        for (text, wanted) in [
            (format!("{}{}", "[".repeat(DEPTH_MAX + 1), "]".repeat(DEPTH_MAX + 1)), "deeper"),
            ("[".repeat(1 << 20), "limit"),
            ("- ".repeat(1 << 19), "deeper"),
            ("-\n".repeat(1 << 18), "more than"),
        ] {
            let error = read(&text).expect_err("too much");
            assert!(error.problem.contains(wanted), "{error:?}");
        }
        assert!(read(&format!("{}{}", "[".repeat(DEPTH_MAX), "]".repeat(DEPTH_MAX))).is_ok());
    }

    #[test]
    fn an_empty_text_is_nothing() {
        for text in ["", "\n", "# only a comment\n", "---\n", "\u{feff}"] {
            assert!(read(text).expect("a document").is_null(), "{text:?}");
        }
    }
}
