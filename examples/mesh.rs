//! Workers that know each other: a token goes round a ring of them, one dies with it in hand, and the ring closes again.
//!
//! ```text
//! cargo run --release --example mesh
//! ```

use hatchery::prelude::*;

/// How many there are in the ring.
const MEMBERS: usize = 4;

/// Who has had it, in order: the member's path, and the process it was then.
type Token = Vec<(String, u32)>;

/// One of the ring, in a process of its own. It speaks to its neighbour directly.
struct Member {
    next: MemberHandle,
    trapped: bool,
}

#[hatchery::actor]
impl Member {
    /// Whoever is started anew gets the arguments of the first: it has lost its state, but not its neighbour.
    fn start(next: MemberHandle) -> Self {
        Member { next, trapped: false }
    }

    /// The next token kills it.
    fn trap(&mut self) {
        self.trapped = true;
    }

    /// Takes the token and passes it on. The answer is the token, when it has been all round.
    fn take(&self, mut token: Token, reply: Reply<hatchery::Result<Token>>, cx: &Context) {
        if self.trapped {
            std::process::abort() // a real crash of a real process, with the token in its hand
        }
        if token.first().is_some_and(|(path, _)| path == cx.path()) {
            let _ = reply.send(Ok(token)); // it has come home
            return;
        }
        token.push((cx.path().to_owned(), std::process::id()));
        let next = self.next.clone();
        // Beside the actor, which has to be free when the token comes home.
        cx.spawn(async move {
            let home = loop {
                match next.take(token.clone()).await {
                    Err(error) if error.is_crash() => println!("sent again: {error}"), // same handle, new process
                    home => break home,
                }
            };
            let _ = reply.send(home.map_err(hatchery::Error::from));
        });
    }
}

#[hatchery::main]
async fn main() -> hatchery::Result<()> {
    let tree = Supervisor::new(Strategy::OneForOne).name("ring").start().await?;
    let mut ring = Vec::new();
    for n in 1..=MEMBERS {
        // A handle names a place in the tree: it may be given away before anybody sits there.
        let next = hatchery::lookup::<Member>(&format!("/ring/{}", n % MEMBERS + 1))?;
        ring.push(tree.start_child(worker::<Member>(n.to_string(), next)).await?);
    }
    let first = lap(&ring).await?;

    ring[2].trap().await?;
    let second = lap(&ring).await?; // dies with the token; whoever passed it there learns that, and passes it again
    assert_eq!(changed(&first, &second), ["/ring/3"]);

    let down = ring[3].monitor();
    ring[3].kill(); // SIGKILL, while nothing goes on
    println!("{}", down.await);
    let third = lap(&ring).await?; // waits there until the next incarnation has started
    assert_eq!(changed(&second, &third), ["/ring/4"]);
    tree.stop().await
}

/// Sends a token round, and prints who had it.
async fn lap(ring: &[MemberHandle]) -> hatchery::Result<Token> {
    let token = ring[0].take(Token::new()).timeout(Duration::from_secs(5)).await?;
    let way: Vec<_> = token.iter().map(|(path, pid)| format!("{path} ({pid})")).collect();
    println!("{}", way.join(" → "));
    assert_eq!(token.len(), ring.len());
    assert!(token.iter().zip(ring).all(|((path, _), member)| path == member.path()));
    Ok(token)
}

/// Whose process is another one now.
fn changed<'a>(before: &Token, now: &'a Token) -> Vec<&'a str> {
    let others = now.iter().zip(before).filter(|((_, now), (_, before))| now != before);
    others.map(|((path, _), _)| path.as_str()).collect()
}
