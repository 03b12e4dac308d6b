//! Host lists as SLURM writes them: `gpu[01-03,07],login1`, `rack[1-2]node[3-4].local`.
//!
//! What comes out is bounded before it is made: at most [`MOST_HOSTS`] names of at most [`LONGEST_NAME`] bytes.

/// Most names of a list.
pub const MOST_HOSTS: usize = 65_536;
/// Most bytes of a name, as in DNS.
pub const LONGEST_NAME: usize = 253;

/// A text that is no host list.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostlistError {
    #[error("host list: {expected} expected at byte {at}; write it like gpu[01-03,07],login1")]
    Syntax { at: usize, expected: &'static str },
    #[error("host list: the range that ends at byte {at} runs backwards, {low}-{high}")]
    Backwards { at: usize, low: u32, high: u32 },
    #[error("host list: more than {MOST_HOSTS} hosts")]
    TooMany,
    #[error("host list: a name longer than {LONGEST_NAME} bytes at byte {at}")]
    LongName { at: usize },
}

/// A piece of a name.
enum Part<'t> {
    Literal(&'t str),
    Numbers(Vec<Range>),
}

/// `low` to `high` inclusive, with zeros in front up to `width` digits.
struct Range {
    low: u32,
    high: u32,
    width: usize,
}

struct Reader<'t> {
    text: &'t str,
    at: usize,
}

/// The names of a host list in its order; of several brackets the last one runs fastest.
pub fn expand(text: &str) -> Result<Vec<String>, HostlistError> {
    let mut reader = Reader { text: text.trim_ascii(), at: 0 };
    let mut names = Vec::new();
    loop {
        let parts = reader.item()?;
        if hosts(&parts).is_none_or(|more| more > MOST_HOSTS - names.len()) {
            return Err(HostlistError::TooMany);
        }
        names.extend(product(&parts));
        match reader.peek() {
            None => return Ok(names),
            Some(b',') => reader.at += 1,
            Some(_) => return Err(reader.expected("a comma")),
        }
    }
}

impl<'t> Reader<'t> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn expected(&self, expected: &'static str) -> HostlistError {
        HostlistError::Syntax { at: self.at, expected }
    }

    /// The longest run of bytes that satisfy `belongs`, all of them ASCII.
    fn run(&mut self, belongs: impl Fn(u8) -> bool) -> &'t str {
        let begin = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii() && belongs(byte)) {
            self.at += 1;
        }
        &self.text[begin..self.at]
    }

    /// One entry of the list, up to a comma outside brackets or the end.
    fn item(&mut self) -> Result<Vec<Part<'t>>, HostlistError> {
        let mut parts = Vec::new();
        let mut length = 0;
        loop {
            let literal = self.run(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
            let part = if !literal.is_empty() {
                length += literal.len();
                Part::Literal(literal)
            } else if self.peek() == Some(b'[') {
                let ranges = self.numbers()?;
                length += ranges.iter().map(Range::longest).max().unwrap_or(0);
                Part::Numbers(ranges)
            } else if parts.is_empty() {
                return Err(self.expected("a host name"));
            } else {
                return Ok(parts);
            };
            if length > LONGEST_NAME {
                return Err(HostlistError::LongName { at: self.at });
            }
            parts.push(part);
        }
    }

    /// `[01-03,07]`.
    fn numbers(&mut self) -> Result<Vec<Range>, HostlistError> {
        let mut ranges = Vec::new();
        loop {
            self.at += 1; // the bracket or the comma
            let (low, width) = self.number()?;
            let mut high = low;
            if self.peek() == Some(b'-') {
                self.at += 1;
                high = self.number()?.0;
            }
            if high < low {
                return Err(HostlistError::Backwards { at: self.at, low, high });
            }
            ranges.push(Range { low, high, width });
            match self.peek() {
                Some(b',') => {}
                Some(b']') => {
                    self.at += 1;
                    return Ok(ranges);
                }
                _ => return Err(self.expected("a comma or ]")),
            }
        }
    }

    /// A number and how many digits it is written with.
    fn number(&mut self) -> Result<(u32, usize), HostlistError> {
        let fault = self.expected("a number of at most 9 digits");
        let digits = self.run(|byte| byte.is_ascii_digit());
        match digits.parse() {
            Ok(number) if digits.len() <= 9 => Ok((number, digits.len())),
            _ => Err(fault),
        }
    }
}

impl Range {
    fn count(&self) -> usize {
        (self.high - self.low) as usize + 1
    }

    /// Digits of the longest number: nine at most.
    fn longest(&self) -> usize {
        self.width.max(self.high.to_string().len())
    }
}

/// How many names these parts make, if that is a number at all.
fn hosts(parts: &[Part<'_>]) -> Option<usize> {
    parts.iter().try_fold(1_usize, |product, part| match part {
        Part::Literal(_) => Some(product),
        Part::Numbers(ranges) => {
            let sum = ranges.iter().try_fold(0_usize, |sum, range| sum.checked_add(range.count()))?;
            product.checked_mul(sum)
        }
    })
}

fn product(parts: &[Part<'_>]) -> Vec<String> {
    let mut names = vec![String::new()];
    for part in parts {
        match part {
            Part::Literal(literal) => names.iter_mut().for_each(|name| name.push_str(literal)),
            Part::Numbers(ranges) => {
                let numbers = || ranges.iter().flat_map(|r| (r.low..=r.high).map(|n| (n, r.width)));
                names = names
                    .iter()
                    .flat_map(|name| numbers().map(move |(number, width)| format!("{name}{number:0width$}")))
                    .collect();
            }
        }
    }
    names
}
