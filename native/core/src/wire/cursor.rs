//! msgpack as the protocol has it: strict, bounded, and without a copy.

/// Containers inside each other.
pub const DEEPEST: usize = 32;
/// Values in one message, those of an append's records apart.
pub const MOST_NODES: usize = 65_536;

/// Why these bytes are no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

pub type Parsed<T> = Result<T, Malformed>;

/// Reads values one behind the other.
///
/// A length is never believed beyond the bytes that are there: an array of n has n bytes at least, a map 2 n.
#[derive(Debug, Clone)]
pub struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub fn end(&self) -> Parsed<()> {
        if self.rest.is_empty() { Ok(()) } else { Err(Malformed("there are bytes behind the message")) }
    }

    /// Bytes that are left.
    pub fn left(&self) -> usize {
        self.rest.len()
    }

    /// How long the next value is, if it is bytes.
    pub fn ahead(&self) -> usize {
        let mut next = self.clone();
        next.bytes().map_or(0, <[u8]>::len)
    }

    /// The first byte of the next value.
    fn peek(&self) -> Parsed<u8> {
        self.rest.first().copied().ok_or(CUT)
    }

    fn take(&mut self, length: usize) -> Parsed<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(CUT)?;
        self.rest = rest;
        Ok(taken)
    }

    fn number<const N: usize>(&mut self) -> Parsed<[u8; N]> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or(CUT)?;
        self.rest = rest;
        Ok(*taken)
    }

    fn length(&mut self, bytes: usize) -> Parsed<usize> {
        Ok(match bytes {
            1 => u8::from_be_bytes(self.number()?).into(),
            2 => u16::from_be_bytes(self.number()?).into(),
            _ => u32::from_be_bytes(self.number()?) as usize,
        })
    }

    pub fn array(&mut self) -> Parsed<usize> {
        let length = match self.number::<1>()?[0] {
            first @ 0x90..=0x9f => usize::from(first & 0x0f),
            0xdc => self.length(2)?,
            0xdd => self.length(4)?,
            _ => return Err(Malformed("an array is wanted")),
        };
        if length <= self.rest.len() { Ok(length) } else { Err(CUT) }
    }

    /// The head of an array that has just so many elements.
    pub fn exactly(&mut self, wanted: usize) -> Parsed<()> {
        if self.array()? == wanted { Ok(()) } else { Err(Malformed("an array has another length")) }
    }

    pub fn map(&mut self) -> Parsed<usize> {
        let length = match self.number::<1>()?[0] {
            first @ 0x80..=0x8f => usize::from(first & 0x0f),
            0xde => self.length(2)?,
            0xdf => self.length(4)?,
            _ => return Err(Malformed("a map is wanted")),
        };
        if length <= self.rest.len() / 2 { Ok(length) } else { Err(CUT) }
    }

    /// Whether the next value is bytes.
    pub fn bytes_come(&self) -> Parsed<bool> {
        Ok(matches!(self.peek()?, 0xc4..=0xc6))
    }

    pub fn bytes(&mut self) -> Parsed<&'a [u8]> {
        let length = match self.number::<1>()?[0] {
            0xc4 => self.length(1)?,
            0xc5 => self.length(2)?,
            0xc6 => self.length(4)?,
            _ => return Err(Malformed("bytes are wanted")),
        };
        self.take(length)
    }

    pub fn text(&mut self) -> Parsed<&'a str> {
        let length = match self.number::<1>()?[0] {
            first @ 0xa0..=0xbf => usize::from(first & 0x1f),
            0xd9 => self.length(1)?,
            0xda => self.length(2)?,
            0xdb => self.length(4)?,
            _ => return Err(Malformed("a string is wanted")),
        };
        std::str::from_utf8(self.take(length)?).map_err(|_| Malformed("a string is not UTF-8"))
    }

    /// Any integer, in 64 bits with a sign.
    pub fn integer(&mut self) -> Parsed<i64> {
        Ok(match self.number::<1>()?[0] {
            first @ (0x00..=0x7f | 0xe0..=0xff) => i64::from(first as i8),
            0xcc => u8::from_be_bytes(self.number()?).into(),
            0xcd => u16::from_be_bytes(self.number()?).into(),
            0xce => u32::from_be_bytes(self.number()?).into(),
            0xcf => i64::try_from(u64::from_be_bytes(self.number()?)).map_err(|_| TOO_LARGE)?,
            0xd0 => i8::from_be_bytes(self.number()?).into(),
            0xd1 => i16::from_be_bytes(self.number()?).into(),
            0xd2 => i32::from_be_bytes(self.number()?).into(),
            0xd3 => i64::from_be_bytes(self.number()?),
            _ => return Err(Malformed("an integer is wanted")),
        })
    }

    /// One that is not below 0.
    pub fn count(&mut self) -> Parsed<u64> {
        if self.peek()? == 0xcf {
            self.take(1)?;
            return Ok(u64::from_be_bytes(self.number()?));
        }
        u64::try_from(self.integer()?).map_err(|_| Malformed("a number is below 0"))
    }

    /// One that fits in 32 bits.
    pub fn small(&mut self) -> Parsed<u32> {
        u32::try_from(self.integer()?).map_err(|_| Malformed("a number does not fit in 32 bits"))
    }

    /// Just so many bytes.
    pub fn fixed<const N: usize>(&mut self) -> Parsed<[u8; N]> {
        self.bytes()?.try_into().map_err(|_| Malformed("bytes have another length"))
    }

    pub fn bool(&mut self) -> Parsed<bool> {
        match self.number::<1>()?[0] {
            0xc2 => Ok(false),
            0xc3 => Ok(true),
            _ => Err(Malformed("true or false is wanted")),
        }
    }

    /// Whether nil comes, which is then passed.
    pub fn nil(&mut self) -> Parsed<bool> {
        let nil = self.peek()? == 0xc0;
        if nil {
            self.rest = &self.rest[1..];
        }
        Ok(nil)
    }
}

const CUT: Malformed = Malformed("the message is cut short");
const TOO_LARGE: Malformed = Malformed("a number does not fit in 63 bits");

/// A value, or the head of one that has others in it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value<'a> {
    Nil,
    Bool(bool),
    Integer(i64),
    Count(u64),
    Float(f64),
    Bytes(&'a [u8]),
    Text(&'a str),
    Array(usize),
    Map(usize),
}

impl<'a> Cursor<'a> {
    fn value(&mut self) -> Parsed<Value<'a>> {
        Ok(match self.peek()? {
            0xcf => Value::Count(self.count()?),
            0x00..=0x7f | 0xe0..=0xff | 0xcc..=0xce | 0xd0..=0xd3 => Value::Integer(self.integer()?),
            0xc0 => self.take(1).map(|_| Value::Nil)?,
            0xc2 | 0xc3 => Value::Bool(self.bool()?),
            0xc4..=0xc6 => Value::Bytes(self.bytes()?),
            0xa0..=0xbf | 0xd9..=0xdb => Value::Text(self.text()?),
            0xca | 0xcb => Value::Float(self.float()?),
            0x90..=0x9f | 0xdc | 0xdd => Value::Array(self.array()?),
            0x80..=0x8f | 0xde | 0xdf => Value::Map(self.map()?),
            0xc1 | 0xc7..=0xc9 | 0xd4..=0xd8 => return Err(Malformed("the message has a type that no message has")),
        })
    }

    fn float(&mut self) -> Parsed<f64> {
        let value = match self.number::<1>()?[0] {
            0xca => f32::from_be_bytes(self.number()?).into(),
            _ => f64::from_be_bytes(self.number()?),
        };
        if value.is_nan() { Err(Malformed("a number is none")) } else { Ok(value) }
    }
}

/// Makes something of a message, from the inside out.
pub trait Make {
    type Made;
    fn leaf(&mut self, value: Value) -> Self::Made;
    fn array(&mut self, elements: Vec<Self::Made>) -> Self::Made;
    fn map(&mut self, pairs: Vec<(&str, Self::Made)>) -> Self::Made;
}

/// What these bytes say, if they are one value that any message may be: no deeper and no larger than the limits, no
/// extension types, no NaN, strings that are UTF-8, and maps whose keys are strings that differ.
pub fn make<M: Make>(bytes: &[u8], maker: &mut M) -> Parsed<M::Made> {
    let mut cursor = Cursor::new(bytes);
    let mut nodes = 0;
    let made = make_next(&mut cursor, maker, 0, &mut nodes)?;
    cursor.end()?;
    Ok(made)
}

fn make_next<M: Make>(cursor: &mut Cursor, maker: &mut M, depth: usize, nodes: &mut usize) -> Parsed<M::Made> {
    *nodes += 1;
    if *nodes > MOST_NODES {
        return Err(Malformed("the message has too many values"));
    }
    let value = cursor.value()?;
    if matches!(value, Value::Array(_) | Value::Map(_)) && depth == DEEPEST {
        return Err(Malformed("the message is nested too deeply"));
    }
    match value {
        Value::Array(length) => {
            let elements: Parsed<Vec<_>> = (0..length).map(|_| make_next(cursor, maker, depth + 1, nodes)).collect();
            Ok(maker.array(elements?))
        }
        Value::Map(length) => {
            let mut pairs = Vec::new();
            for _ in 0..length {
                *nodes += 1;
                pairs.push((cursor.text()?, make_next(cursor, maker, depth + 1, nodes)?));
            }
            let mut names: Vec<_> = pairs.iter().map(|(name, _)| *name).collect();
            names.sort_unstable();
            if names.windows(2).any(|pair| pair[0] == pair[1]) {
                return Err(Malformed("a map has a key twice"));
            }
            Ok(maker.map(pairs))
        }
        leaf => Ok(maker.leaf(leaf)),
    }
}

/// Values put one behind the other.
pub trait Put {
    fn put_array(&mut self, length: usize);
    fn put_map(&mut self, length: usize);
    fn put_bytes(&mut self, bytes: &[u8]);
    fn put_text(&mut self, text: &str);
    fn put_count(&mut self, number: u64);
    fn put_integer(&mut self, number: i64);
    fn put_float(&mut self, number: f64);
    fn put_nil(&mut self);
    fn put_bool(&mut self, value: bool);
    fn put_optional<T>(&mut self, value: Option<T>, put: impl FnOnce(&mut Self, T));
}

impl Put for Vec<u8> {
    fn put_array(&mut self, length: usize) {
        match length {
            0..=15 => self.push(0x90 | length as u8),
            16..=0xffff => {
                self.push(0xdc);
                self.extend_from_slice(&(length as u16).to_be_bytes());
            }
            _ => {
                self.push(0xdd);
                self.extend_from_slice(&(length as u32).to_be_bytes());
            }
        }
    }

    fn put_map(&mut self, length: usize) {
        match length {
            0..=15 => self.push(0x80 | length as u8),
            _ => {
                self.push(0xde);
                self.extend_from_slice(&(length as u16).to_be_bytes());
            }
        }
    }

    fn put_bytes(&mut self, bytes: &[u8]) {
        match bytes.len() {
            length @ 0..=0xff => self.extend_from_slice(&[0xc4, length as u8]),
            length @ 0x100..=0xffff => {
                self.push(0xc5);
                self.extend_from_slice(&(length as u16).to_be_bytes());
            }
            length => {
                self.push(0xc6);
                self.extend_from_slice(&(length as u32).to_be_bytes());
            }
        }
        self.extend_from_slice(bytes);
    }

    fn put_text(&mut self, text: &str) {
        match text.len() {
            length @ 0..=31 => self.push(0xa0 | length as u8),
            length @ 32..=0xff => self.extend_from_slice(&[0xd9, length as u8]),
            length @ 0x100..=0xffff => {
                self.push(0xda);
                self.extend_from_slice(&(length as u16).to_be_bytes());
            }
            length => {
                self.push(0xdb);
                self.extend_from_slice(&(length as u32).to_be_bytes());
            }
        }
        self.extend_from_slice(text.as_bytes());
    }

    fn put_count(&mut self, number: u64) {
        match number {
            0..=0x7f => self.push(number as u8),
            0x80..=0xff => self.extend_from_slice(&[0xcc, number as u8]),
            0x100..=0xffff => {
                self.push(0xcd);
                self.extend_from_slice(&(number as u16).to_be_bytes());
            }
            0x1_0000..=0xffff_ffff => {
                self.push(0xce);
                self.extend_from_slice(&(number as u32).to_be_bytes());
            }
            _ => {
                self.push(0xcf);
                self.extend_from_slice(&number.to_be_bytes());
            }
        }
    }

    fn put_integer(&mut self, number: i64) {
        match u64::try_from(number) {
            Ok(number) => self.put_count(number),
            Err(_) => {
                self.push(0xd3);
                self.extend_from_slice(&number.to_be_bytes());
            }
        }
    }

    fn put_float(&mut self, number: f64) {
        self.push(0xcb);
        self.extend_from_slice(&number.to_be_bytes());
    }

    fn put_nil(&mut self) {
        self.push(0xc0);
    }

    fn put_bool(&mut self, value: bool) {
        self.push(if value { 0xc3 } else { 0xc2 });
    }

    fn put_optional<T>(&mut self, value: Option<T>, put: impl FnOnce(&mut Self, T)) {
        match value {
            None => self.put_nil(),
            Some(value) => put(self, value),
        }
    }
}
