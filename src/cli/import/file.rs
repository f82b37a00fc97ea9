//! Rows of a file: a JSON object a line, or CSV with a head.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde_json::{Map, Value};

use super::row::{COLUMNS, Row, request, unknown_column};
use crate::domain::InvalidField;

/// A line of JSON is not longer than the largest key with its escapes; what is longer is something else.
const MAX_LINE_BYTES: u64 = 1024 * 1024;

/// The file `path`, or standard input for `-`.
fn open(path: &Path) -> Result<Box<dyn BufRead + Send>> {
    if path == Path::new("-") {
        return Ok(Box::new(BufReader::new(io::stdin())));
    }
    let file = File::open(path).with_context(|| format!("can't read {} (--from)", path.display()))?;
    Ok(Box::new(BufReader::new(file)))
}

/// JSON objects, one a line.
pub(super) struct JsonLines {
    lines: Box<dyn BufRead + Send>,
    line: usize,
}

impl JsonLines {
    pub(super) fn open(path: &Path) -> Result<Self> {
        Ok(Self { lines: open(path)?, line: 0 })
    }

    pub(super) fn next(&mut self, owner: Option<&str>) -> Result<Option<Row>> {
        loop {
            let mut text = Vec::new();
            let mut line = io::Read::take(&mut self.lines, MAX_LINE_BYTES);
            let read = line.read_until(b'\n', &mut text).context("can't read the rows")?;
            if read == 0 {
                return Ok(None);
            }
            self.line += 1;
            if u64::try_from(read).is_ok_and(|read| read == MAX_LINE_BYTES) && !text.ends_with(b"\n") {
                bail!(
                    "line {} is longer than {MAX_LINE_BYTES} bytes: is this a file of JSON lines?",
                    self.line
                );
            }
            if !text.trim_ascii().is_empty() {
                let request = object(&text).and_then(|values| request(values, owner));
                return Ok(Some(Row { label: format!("line {}", self.line), request }));
            }
        }
    }
}

fn object(line: &[u8]) -> Result<Map<String, Value>, InvalidField> {
    match serde_json::from_slice(line) {
        Ok(Value::Object(values)) => Ok(values),
        // The parser's message could quote the line.
        Ok(_) | Err(_) => Err(InvalidField::new("row", "is no JSON object")),
    }
}

/// CSV as in RFC 4180, whose first line names the columns. Scopes are separated by spaces, metadata is a JSON object.
pub(super) struct CsvRows {
    reader: csv::Reader<Box<dyn BufRead + Send>>,
    columns: Vec<String>,
}

impl CsvRows {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let mut reader = csv::Reader::from_reader(open(path)?);
        let head = reader.headers().context("can't read the head of the CSV file")?;
        let columns: Vec<String> = head.iter().map(|name| name.trim().to_owned()).collect();
        for (at, name) in columns.iter().enumerate() {
            if !COLUMNS.contains(&name.as_str()) {
                return Err(unknown_column(name)).context("the head of the CSV file");
            }
            if columns[..at].contains(name) {
                bail!("the head of the CSV file names {name} twice");
            }
        }
        Ok(Self { reader, columns })
    }

    pub(super) fn next(&mut self, owner: Option<&str>) -> Result<Option<Row>> {
        let mut record = csv::StringRecord::new();
        let at = self.reader.position().line();
        match self.reader.read_record(&mut record) {
            Ok(false) => return Ok(None),
            Ok(true) => {}
            Err(error) if error.is_io_error() => return Err(error).context("can't read the rows"),
            Err(_) => {
                let problem = "has another number of columns than the head, or is no UTF-8";
                let request = Err(InvalidField::new("row", problem));
                return Ok(Some(Row { label: format!("line {at}"), request }));
            }
        }
        let line = record.position().map_or(at, csv::Position::line);
        let request = self.values(&record).and_then(|values| request(values, owner));
        Ok(Some(Row { label: format!("line {line}"), request }))
    }

    fn values(&self, record: &csv::StringRecord) -> Result<Map<String, Value>, InvalidField> {
        let mut values = Map::new();
        for (name, cell) in self.columns.iter().zip(record) {
            // An empty cell is one that nothing is known of.
            if cell.is_empty() {
                continue;
            }
            let value = match name.as_str() {
                "scopes" => cell.split_whitespace().map(Value::from).collect(),
                "metadata" => serde_json::from_str(cell)
                    .map_err(|_| InvalidField::new("metadata", "is no JSON object"))?,
                _ => Value::from(cell),
            };
            values.insert(name.clone(), value);
        }
        Ok(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    fn told(mut next: impl FnMut() -> Result<Option<Row>>) -> Vec<(String, Result<String, String>)> {
        let mut rows = Vec::new();
        while let Some(row) = next().unwrap() {
            let name = row.request.map(|it| it.key.unwrap().name).map_err(|error| error.field);
            rows.push((row.label, name));
        }
        rows
    }

    #[test]
    fn a_bad_line_of_json_is_told_and_the_next_is_read() {
        let hash = "ab".repeat(32);
        let text = format!(
            "{{\"hash\":\"{hash}\",\"name\":\"a\"}}\n\nno json\n{{\"hash\":\"{hash}\",\"name\":\"b\"}}"
        );
        let file = written(&text);
        let mut lines = JsonLines::open(file.path()).unwrap();
        let expected = [
            ("line 1".to_owned(), Ok("a".to_owned())),
            ("line 3".to_owned(), Err("row".to_owned())),
            ("line 4".to_owned(), Ok("b".to_owned())),
        ];
        assert_eq!(told(|| lines.next(None)), expected);
    }

    #[test]
    fn csv_has_scopes_metadata_and_quotes() {
        let hash = "ab".repeat(32);
        let file = written(&format!(
            "hash,name,scopes,metadata\n{hash},\"a, \"\"b\"\"\",read  write,\"{{\"\"k\"\": 1}}\"\n{hash},short\n{hash},c,,\n"
        ));
        let mut rows = CsvRows::open(file.path()).unwrap();
        let first = rows.next(Some("o")).unwrap().unwrap();
        let key = first.request.unwrap().key.unwrap();
        assert_eq!((key.name.as_str(), key.owner_id.as_str()), ("a, \"b\"", "o"));
        assert_eq!(
            (key.scopes, key.metadata["k"].as_str()),
            (vec!["read".to_owned(), "write".to_owned()], "1")
        );
        let rest = told(|| rows.next(None));
        let expected =
            [("line 3".to_owned(), Err("row".to_owned())), ("line 4".to_owned(), Ok("c".to_owned()))];
        assert_eq!(rest, expected);
    }

    #[test]
    fn an_unknown_column_is_refused_before_anything_is_sent() {
        let error = CsvRows::open(written("hash,owner\n").path()).err().unwrap();
        assert!(format!("{error:#}").contains("`owner_id`"), "{error:#}");
        assert!(CsvRows::open(written("hash,name,name\n").path()).is_err());
    }
}
