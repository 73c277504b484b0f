//! TODO
use tests::Trial;
pub fn trials() -> Vec<Trial> {
    Vec::new()
}
