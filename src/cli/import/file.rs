//! Rows of a file: one JSON object per line, or CSV with a header.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read as _};
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use super::json::Object;
use super::row::{COLUMNS, Row, quoted, request, unknown_column};
use crate::domain::InvalidField;
use crate::grpc::pb::ImportKeysRequest;

/// Maximum length of a line in bytes: more than the largest key with all its characters escaped.
const MAX_LINE_BYTES: u64 = 1024 * 1024;
/// Some programs write this at the beginning of UTF-8 files.
const BYTE_ORDER_MARK: &str = "\u{feff}";

/// Reads the lines of a file. Memory use is limited, however long a line is.
struct Lines {
    reader: Box<dyn BufRead + Send>,
    number: usize,
}

impl Lines {
    /// Opens the file `path`, or standard input for `-`.
    fn open(path: &Path) -> Result<Self> {
        let reader: Box<dyn BufRead + Send> = if path == Path::new("-") {
            Box::new(BufReader::new(io::stdin()))
        } else {
            let file = File::open(path).with_context(|| format!("can't read {} (--from)", path.display()))?;
            Box::new(BufReader::new(file))
        };
        Ok(Self { reader, number: 0 })
    }

    /// Returns the next line that is not blank, or the reason why it is invalid. `None` at the end.
    fn next(&mut self) -> Result<Option<Result<String, InvalidField>>> {
        loop {
            let mut bytes = Vec::new();
            let mut line = self.reader.by_ref().take(MAX_LINE_BYTES);
            let read = line.read_until(b'\n', &mut bytes).context("can't read the rows")?;
            if read == 0 {
                return Ok(None);
            }
            self.number += 1;
            if !bytes.ends_with(b"\n") && u64::try_from(read).is_ok_and(|read| read == MAX_LINE_BYTES) {
                self.skip_rest().context("can't read the rows")?;
                let problem = format!("longer than {MAX_LINE_BYTES} bytes, which no valid key needs");
                return Ok(Some(Err(InvalidField::new("row", problem))));
            }
            let Ok(mut text) = str::from_utf8(&bytes) else {
                return Ok(Some(Err(InvalidField::new("row", "not valid UTF-8"))));
            };
            if self.number == 1 {
                text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text);
            }
            let text = text.trim_end_matches(['\r', '\n']);
            if !text.trim().is_empty() {
                return Ok(Some(Ok(text.to_owned())));
            }
        }
    }

    fn skip_rest(&mut self) -> io::Result<()> {
        loop {
            let buffered = self.reader.fill_buf()?;
            let end = buffered.iter().position(|&byte| byte == b'\n');
            let (skipped, is_done) = match end {
                Some(end) => (end + 1, true),
                None => (buffered.len(), buffered.is_empty()),
            };
            self.reader.consume(skipped);
            if is_done {
                return Ok(());
            }
        }
    }

    /// Returns the next row, parsed by `parse`.
    fn next_row(
        &mut self,
        parse: impl FnOnce(&str) -> Result<ImportKeysRequest, InvalidField>,
    ) -> Result<Option<Row>> {
        let Some(line) = self.next()? else {
            return Ok(None);
        };
        Ok(Some(Row { label: format!("line {}", self.number), request: line.and_then(|line| parse(&line)) }))
    }
}

/// Rows of a file with one JSON object per line.
pub(super) struct JsonLines(Lines);

impl JsonLines {
    pub(super) fn open(path: &Path) -> Result<Self> {
        Lines::open(path).map(Self)
    }

    pub(super) fn next(&mut self, owner: Option<&str>) -> Result<Option<Row>> {
        self.0.next_row(|line| json_row(line, owner))
    }
}

fn json_row(line: &str, owner: Option<&str>) -> Result<ImportKeysRequest, InvalidField> {
    // The parser's message could quote the line, so it is not used.
    let problem = "not a JSON object, or it has a duplicate key";
    let values = Object::parse(line).ok_or_else(|| InvalidField::new("row", problem))?;
    request(&values, owner)
}

/// Reads a line in both formats.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn read_line(line: &str) {
    let _ = json_row(line, Some("owner"));
    let columns = COLUMNS.map(str::to_owned);
    if let Ok(record) = record(line)
        && let Ok(values) = values(&columns, &record)
    {
        let _ = request(&values, None);
    }
}

/// Rows of a CSV file as in RFC 4180, but with each record on one line. No value of a key has a line break, so an
/// unclosed quote only invalidates its own line. The first line names the columns. Scopes are separated by spaces, and
/// metadata is a JSON object.
pub(super) struct CsvRows {
    lines: Lines,
    columns: Vec<String>,
}

impl CsvRows {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let mut lines = Lines::open(path)?;
        let head = lines.next()?.context("the CSV file is empty; its first line must name the columns")?;
        let head = head.and_then(|head| record(&head)).context("the header of the CSV file")?;
        let columns: Vec<String> = head.iter().map(|name| name.trim().to_owned()).collect();
        for (at, name) in columns.iter().enumerate() {
            if !COLUMNS.contains(&name.as_str()) {
                return Err(unknown_column(name)).context("the header of the CSV file");
            }
            if columns[..at].contains(name) {
                bail!("the header of the CSV file: duplicate column {name}");
            }
        }
        Ok(Self { lines, columns })
    }

    pub(super) fn next(&mut self, owner: Option<&str>) -> Result<Option<Row>> {
        let columns = &self.columns;
        self.lines.next_row(|line| {
            let record = record(line)?;
            if record.len() != columns.len() {
                return Err(InvalidField::new("row", "the number of columns differs from the header's"));
            }
            request(&values(columns, &record)?, owner)
        })
    }
}

fn record(line: &str) -> Result<csv::StringRecord, InvalidField> {
    if !line.matches('"').count().is_multiple_of(2) {
        return Err(InvalidField::new("row", "a quote is not closed on its line"));
    }
    let mut reader = csv::ReaderBuilder::new().has_headers(false).from_reader(line.as_bytes());
    let mut record = csv::StringRecord::new();
    match reader.read_record(&mut record) {
        Ok(_) => Ok(record),
        Err(_) => Err(InvalidField::new("row", "not valid CSV")),
    }
}

fn values(columns: &[String], record: &csv::StringRecord) -> Result<Object, InvalidField> {
    let mut values = Object::default();
    for (name, cell) in columns.iter().zip(record) {
        // An empty cell means that the value is unset.
        if cell.is_empty() {
            continue;
        }
        let value = match name.as_str() {
            "scopes" => {
                let scopes: Vec<_> = cell.split_whitespace().collect();
                serde_json::value::to_raw_value(&scopes)
            }
            "metadata" => serde_json::from_str(cell),
            _ => {
                values.push(name, quoted(cell)?);
                continue;
            }
        };
        values.push(name, value.map_err(|_| InvalidField::new(name, "not a JSON object"))?);
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    /// Reads all rows. Returns their labels, with the name of the key or the field of the error.
    fn outcomes(mut next: impl FnMut() -> Result<Option<Row>>) -> Vec<(String, Result<String, String>)> {
        let mut rows = Vec::new();
        while let Some(row) = next().unwrap() {
            let name = row.request.map(|it| it.key.unwrap().name).map_err(|error| error.field);
            rows.push((row.label, name));
        }
        rows
    }

    #[test]
    fn an_invalid_json_line_is_reported_and_the_next_is_read() {
        let hash = "ab".repeat(32);
        let row = |name: &str| format!("{{\"hash\":\"{hash}\",\"name\":\"{name}\"}}");
        let (first, second, long) = (row("a"), row("b"), "x".repeat(3 * 1024 * 1024));
        let twice = "{\"name\": \"c\", \"name\": \"d\"}";
        let text = format!("\u{feff}{first}\r\n\nnot JSON\n{long}\n{second}\n{twice}");
        let file = written(&text);
        let mut lines = JsonLines::open(file.path()).unwrap();
        let expected = [
            ("line 1".to_owned(), Ok("a".to_owned())),
            ("line 3".to_owned(), Err("row".to_owned())),
            ("line 4".to_owned(), Err("row".to_owned())),
            ("line 5".to_owned(), Ok("b".to_owned())),
            ("line 6".to_owned(), Err("row".to_owned())),
        ];
        assert_eq!(outcomes(|| lines.next(None)), expected);
    }

    #[test]
    fn csv_cells_have_scopes_metadata_and_quotes() {
        let hash = "ab".repeat(32);
        let file = written(&format!(
            "hash,name,scopes,metadata\n{hash},\"a, \"\"b\"\"\",read  write,\"{{\"\"k\"\": 1}}\"\n{hash},short\n{hash},\"open,,\n{hash},c,,\n"
        ));
        let mut rows = CsvRows::open(file.path()).unwrap();
        let first = rows.next(Some("o")).unwrap().unwrap();
        let key = first.request.unwrap().key.unwrap();
        assert_eq!((key.name.as_str(), key.owner_id.as_str()), ("a, \"b\"", "o"));
        assert_eq!(
            (key.scopes, key.metadata["k"].as_str()),
            (vec!["read".to_owned(), "write".to_owned()], "1")
        );
        let rest = outcomes(|| rows.next(None));
        let expected = [("line 3", Err("row")), ("line 4", Err("row")), ("line 5", Ok("c"))];
        let expected =
            expected.map(|(label, name)| (label.to_owned(), name.map(str::to_owned).map_err(str::to_owned)));
        assert_eq!(rest, expected);
    }

    #[test]
    fn an_invalid_csv_header_is_rejected() {
        let error = CsvRows::open(written("hash,owner\n").path()).err().unwrap();
        assert!(format!("{error:#}").contains("`owner_id`"), "{error:#}");
        assert!(CsvRows::open(written("hash,name,name\n").path()).is_err());
        assert!(CsvRows::open(written("").path()).is_err());
    }
}
