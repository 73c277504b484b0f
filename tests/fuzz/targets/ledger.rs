//! A ledger and lines that die: the living stay byte for byte and in order, also when the writer is killed half way.
#![no_main]

use libfuzzer_sys::fuzz_target;
use usernet::ledger::{Entry, change, entries};

fn put(file: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    assert!(at <= file.len(), "no hole");
    file.resize(file.len().max(at + bytes.len()), 0);
    file[at..at + bytes.len()].copy_from_slice(bytes);
}

/// What a reader makes of a file: its lines of four fields.
fn read(file: &[u8]) -> Vec<Entry<'_>> {
    entries(file).filter_map(|(_, entry)| entry).collect()
}

// The first byte says which lines die; the rest is the ledger.
fuzz_target!(|data: &[u8]| {
    let Some((&choice, content)) = data.split_first() else { return };
    let all: Vec<_> = entries(content).collect();
    assert_eq!(all.iter().map(|(range, _)| range.len()).sum::<usize>(), content.len());
    let dies = |at: usize| (choice >> (at % 8)) & 1 == 1;
    let chosen = |(at, (range, entry)): (usize, &(std::ops::Range<usize>, Option<Entry<'_>>))| {
        (entry.is_some() && dies(at)).then(|| range.clone())
    };
    let dead: Vec<_> = all.iter().enumerate().filter_map(chosen).collect();
    let added = b"alice veth br0 veth1001_new1\n".to_vec();
    let change = change(content, &dead, &[added.clone()]);

    let mut living: Vec<u8> = Vec::new();
    for (at, (range, entry)) in all.iter().enumerate() {
        if entry.is_none() || !dies(at) {
            living.extend_from_slice(&content[range.clone()]);
        }
    }
    let mut file = content.to_vec();
    if let Some((at, bytes, length)) = &change.rewrite {
        put(&mut file, usize::try_from(*at).unwrap(), bytes);
        assert_eq!(file.len(), content.len(), "it needs no room");
        assert_eq!(read(&file), read(&living), "killed before the file was cut");
        file.truncate(usize::try_from(*length).unwrap());
    }
    let (at, bytes) = change.append.expect("a line was added");
    assert_eq!(usize::try_from(at).unwrap(), file.len());
    let end = file.len();
    put(&mut file, end, &bytes);
    let before = file.strip_suffix(added.as_slice()).expect("the new line is the last");
    let trimmed = |bytes: &[u8]| {
        let end = bytes.iter().rposition(|b| *b != b'\n').map_or(0, |at| at + 1);
        bytes[..end].to_vec()
    };
    assert_eq!(trimmed(before), trimmed(&living));
});
