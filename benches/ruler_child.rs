//! The ruler's other process. The program proper is in `ruler.rs`.

#![forbid(unsafe_code)]

fn main() -> std::io::Result<()> {
    hatchery_benches::ruler::child()
}
