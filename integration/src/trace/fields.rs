//! Fields of a structure by name, from the text that its `Debug` gives.
//!
//! `Outer { a: U16(1), b: Inner { c: true }, d: [0, 0] }` has the fields `a` = `1`, `b.c` = `true` and
//! `d` = `0`. A tuple of one is what it holds; a list of numbers is one value, and `0` if all are.

use std::fmt::Debug;

/// Name and value of a field.
pub(super) type Field = (String, String);

/// The fields of a structure.
pub(super) fn of(value: &dyn Debug) -> Vec<Field> {
    let text = format!("{value:?}");
    let mut fields = Vec::new();
    let mut reader = Reader { rest: &text };
    reader.value("", &mut fields);
    fields
}

struct Reader<'a> {
    rest: &'a str,
}

impl<'a> Reader<'a> {
    fn eat(&mut self, token: &str) -> bool {
        let rest = self.rest.trim_start();
        let eaten = rest.strip_prefix(token);
        self.rest = eaten.unwrap_or(rest);
        eaten.is_some()
    }

    /// A name or a number.
    fn word(&mut self) -> &'a str {
        let rest = self.rest.trim_start();
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_' && c != '-').unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        self.rest = after;
        word
    }

    /// Reads a value whose name is `path`.
    fn value(&mut self, path: &str, fields: &mut Vec<Field>) {
        if self.eat("[") {
            return self.list(path, fields);
        }
        let word = self.word();
        if self.eat("{") {
            while !self.rest.is_empty() && !self.eat("}") {
                let name = self.word();
                if !self.eat(":") {
                    return;
                }
                let path = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
                self.value(&path, fields);
                self.eat(",");
            }
        } else if self.eat("(") {
            while !self.rest.is_empty() && !self.eat(")") {
                self.value(path, fields);
                self.eat(",");
            }
        } else {
            fields.push((path.to_owned(), word.to_owned()));
        }
    }

    /// Reads a list behind its opening bracket.
    fn list(&mut self, path: &str, fields: &mut Vec<Field>) {
        let mut items = Vec::new();
        while !self.rest.is_empty() && !self.eat("]") {
            let before = self.rest.len();
            self.value("", &mut items);
            self.eat(",");
            if self.rest.len() == before {
                return;
            }
        }
        let values: Vec<String> = items.into_iter().map(|(_, value)| value).collect();
        let zero = values.iter().all(|value| value == "0");
        fields.push((path.to_owned(), if zero { "0".to_owned() } else { values.join(" ") }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    #[expect(dead_code, reason = "read through Debug only")]
    struct Outer {
        a: Tuple,
        inner: Inner,
        zeros: [u8; 3],
        list: [Tuple; 2],
        last: Option<bool>,
    }

    #[derive(Debug)]
    #[expect(dead_code, reason = "read through Debug only")]
    struct Tuple(u16);

    #[derive(Debug)]
    #[expect(dead_code, reason = "read through Debug only")]
    struct Inner {
        c: bool,
        d: i8,
    }

    #[test]
    fn nested_structures_become_paths() {
        let inner = Inner { c: true, d: -1 };
        let outer = Outer { a: Tuple(1), inner, zeros: [0; 3], list: [Tuple(1), Tuple(0)], last: None };
        let found = of(&outer);
        let expected = [
            ("a", "1"),
            ("inner.c", "true"),
            ("inner.d", "-1"),
            ("zeros", "0"),
            ("list", "1 0"),
            ("last", "None"),
        ];
        assert_eq!(found, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }
}
