//! The files that a page of the documentation shows.

/// A code block.
#[derive(Debug, PartialEq)]
pub(crate) struct Block {
    /// The word after the fence, as in `rs` or `rust,no_run`.
    pub(crate) language: &'static str,
    /// The file that the line above names: `` `build.rs`, which needs no `protoc`: ``.
    pub(crate) file: Option<&'static str>,
    pub(crate) text: String,
}

/// The code blocks of a page, in order.
pub(crate) fn blocks(page: &'static str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let (mut above, mut lines) = ("", page.lines());
    while let Some(line) = lines.next() {
        if let Some(language) = line.strip_prefix("```") {
            let text: Vec<_> = lines.by_ref().take_while(|line| !line.starts_with("```")).collect();
            blocks.push(Block { language, file: file(above), text: text.join("\n") + "\n" });
        }
        if !line.is_empty() {
            above = line;
        }
    }
    blocks
}

/// The files that a page shows as a whole.
pub(crate) fn files(page: &'static str) -> impl Iterator<Item = (&'static str, String)> {
    blocks(page).into_iter().filter_map(|block| Some((block.file?, block.text)))
}

/// The file at the beginning or the end of a line that ends in a colon.
fn file(line: &'static str) -> Option<&'static str> {
    let line = line.strip_suffix(':')?;
    let first = line.strip_prefix('`').and_then(|rest| rest.split('`').next());
    let last = || line.strip_suffix('`').and_then(|rest| rest.rsplit('`').next());
    first.or_else(last).filter(|name| name.contains('.'))
}

#[test]
fn files_are_named_by_the_line_above() {
    let page = "# A\n\n`a.rs`, which is short:\n\n```rs\nfn a() {}\n```\n\nAdd to `C.toml`:\n\n```toml\n[b]\n```\n\
                As in:\n\n```yaml\nc: 1\n```\n";
    let found: Vec<_> = blocks(page).into_iter().map(|block| (block.file, block.text)).collect();
    let expected = [(Some("a.rs"), "fn a() {}\n"), (Some("C.toml"), "[b]\n"), (None, "c: 1\n")];
    assert_eq!(found, expected.map(|(file, text)| (file, text.to_owned())));
}
