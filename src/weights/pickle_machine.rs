//! A pickle interpreter that can build tensors and plain containers, and nothing else.
//!
//! Source: CPython's Lib/pickletools.py for the opcodes, torch/serialization.py for what
//! `torch.save` makes of them, torch/csrc/jit/serialization/pickler.cpp for what `torch.jit.save` does.

use std::collections::HashMap;

use crate::weights::pickle::storage_dtype;
use crate::weights::pickle_values::{Global, Heap, RawTensor, Value};

/// Runs a pickle and gives its result; the error is the rest of a sentence.
pub(crate) fn run(program: &[u8]) -> Result<(Heap, Value), String> {
    let mut machine = Machine {
        code: program,
        at: 0,
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        heap: Heap::default(),
    };
    loop {
        let opcode = machine.byte()?;
        if opcode == b'.' {
            let root = machine.pop()?;
            return Ok((machine.heap, root));
        }
        machine.step(opcode)?;
    }
}

struct Machine<'a> {
    code: &'a [u8],
    at: usize,
    stack: Vec<Value>,
    /// Heights of the stack where an open tuple, list or dictionary begins.
    marks: Vec<usize>,
    memo: HashMap<usize, Value>,
    heap: Heap,
}

type Step<T = ()> = Result<T, String>;

impl<'a> Machine<'a> {
    fn step(&mut self, opcode: u8) -> Step {
        match opcode {
            // PROTO, FRAME: nothing to do.
            0x80 => self.take(1).map(drop),
            0x95 => self.take(8).map(drop),
            b'(' => {
                self.marks.push(self.stack.len());
                Ok(())
            }
            b'0' => self.pop().map(drop),
            b'1' => self.pop_mark().map(drop),
            b'2' => {
                let top = self.top()?;
                self.push(top)
            }
            b'N' | 0x88 | 0x89 | b'K' | b'M' | b'J' | 0x8a | b'I' | b'G' => self.number(opcode),
            b'X' | 0x8c | 0x8d | b'U' | b'T' | b'C' | b'B' => self.text(opcode),
            b')' | 0x85 | 0x86 | 0x87 | b't' | b'l' | b']' => self.sequence(opcode),
            b'}' | b'd' | b's' | b'u' => self.dictionary(opcode),
            b'a' | b'e' => self.append(opcode),
            b'q' | b'r' | 0x94 | b'h' | b'j' => self.memo(opcode),
            b'c' | 0x93 => self.global(opcode),
            b'Q' => self.persistent(),
            b'R' => self.reduce(),
            0x81 => self.new_object(),
            b'b' => self.build(),
            _ => Err(format!(
                "has the opcode {opcode:#04x} at byte {}, not allowed",
                self.at - 1
            )),
        }
    }

    fn number(&mut self, opcode: u8) -> Step {
        let value = match opcode {
            b'N' => Value::None,
            0x88 => Value::Bool(true),
            0x89 => Value::Bool(false),
            b'G' => {
                self.take(8)?;
                Value::Opaque
            }
            b'I' => match self.line()? {
                "00" => Value::Bool(false),
                "01" => Value::Bool(true),
                text => text.parse().map_or(Value::Opaque, Value::Int),
            },
            0x8a => {
                let len = usize::from(self.byte()?);
                self.little_endian(len, true)?
            }
            b'K' => self.little_endian(1, false)?,
            b'M' => self.little_endian(2, false)?,
            _ => self.little_endian(4, true)?,
        };
        self.push(value)
    }

    /// An integer of `len` bytes; one beyond 64 bits is opaque.
    fn little_endian(&mut self, len: usize, signed: bool) -> Step<Value> {
        let bytes = self.take(len)?;
        if len > 8 {
            return Ok(Value::Opaque);
        }
        let negative = signed && bytes.last().is_some_and(|b| b & 0x80 != 0);
        let mut wide = if negative { [0xff; 8] } else { [0; 8] };
        wide[..len].copy_from_slice(bytes);
        Ok(Value::Int(i64::from_le_bytes(wide)))
    }

    fn text(&mut self, opcode: u8) -> Step {
        let length = match opcode {
            0x8c | b'U' | b'C' => self.length(1)?,
            0x8d => self.length(8)?,
            _ => self.length(4)?,
        };
        let bytes = self.take(length)?;
        if matches!(opcode, b'C' | b'B') {
            return self.push(Value::Opaque);
        }
        let text = std::str::from_utf8(bytes).map_err(|_| "holds a text that is not UTF-8")?;
        let value = self.heap.str(text);
        self.push(value)
    }

    fn sequence(&mut self, opcode: u8) -> Step {
        let items = match opcode {
            b')' | b']' => Vec::new(),
            0x85..=0x87 => self.pop_n(usize::from(opcode - 0x84))?,
            _ => self.pop_mark()?,
        };
        let value = self.heap.seq(items);
        self.push(value)
    }

    fn dictionary(&mut self, opcode: u8) -> Step {
        let items = match opcode {
            b'}' => Vec::new(),
            b's' => self.pop_n(2)?,
            _ => self.pop_mark()?,
        };
        if matches!(opcode, b'}' | b'd') {
            let value = self.heap.new_dict();
            self.push(value)?;
        }
        let Value::Dict(id) = self.top()? else {
            return Err("sets an item of what is no dictionary".into());
        };
        let (pairs, odd) = items.as_chunks::<2>();
        if !odd.is_empty() {
            return Err("has a key without a value".into());
        }
        self.heap.dicts[id].extend(pairs.iter().map(|&[key, value]| (key, value)));
        Ok(())
    }

    fn append(&mut self, opcode: u8) -> Step {
        let items = if opcode == b'a' {
            self.pop_n(1)?
        } else {
            self.pop_mark()?
        };
        let Value::Seq(id) = self.top()? else {
            return Err("appends to what is no list".into());
        };
        self.heap.seqs[id].extend(items);
        Ok(())
    }

    fn memo(&mut self, opcode: u8) -> Step {
        let id = match opcode {
            0x94 => self.memo.len(),
            b'q' | b'h' => self.length(1)?,
            _ => self.length(4)?,
        };
        if matches!(opcode, b'h' | b'j') {
            let value = *self
                .memo
                .get(&id)
                .ok_or("reads a memo that was never written")?;
            return self.push(value);
        }
        let value = self.top()?;
        self.memo.insert(id, value);
        Ok(())
    }

    fn global(&mut self, opcode: u8) -> Step {
        let (module, name) = if opcode == b'c' {
            (self.line()?.to_string(), self.line()?.to_string())
        } else {
            match self.pop_n(2)?[..] {
                [Value::Str(module), Value::Str(name)] => (
                    self.heap.text(module).to_string(),
                    self.heap.text(name).to_string(),
                ),
                _ => return Err("names a global by something else than two texts".into()),
            }
        };
        let global = match (&*module, &*name) {
            ("collections", "OrderedDict") => Some(Global::OrderedDict),
            ("torch._utils", "_rebuild_tensor_v2") => Some(Global::RebuildTensor),
            ("torch._utils", "_rebuild_parameter") => Some(Global::RebuildParameter),
            ("torch", storage) => storage_dtype(storage).map(Global::Storage),
            ("torch.jit._pickle", _) => Some(Global::Typed),
            (module, _) if module.split('.').next() == Some("__torch__") => Some(Global::Module),
            _ => None,
        };
        let global = global.ok_or_else(|| {
            format!(
                "asks for {module}.{name}; only tensors in plain dictionaries are read, and nothing \
                 in the file is executed; if you trust it, load it with PyTorch and save its tensors \
                 alone: torch.save(model.state_dict(), 'weights.pt')"
            )
        })?;
        self.push(Value::Global(global))
    }

    /// `('storage', torch.FloatStorage, key, device, numel)` stands for a storage in the zip file.
    fn persistent(&mut self) -> Step {
        let id = self.pop()?;
        let storage = match self.heap.items(id) {
            Some(
                &[
                    Value::Str(_),
                    Value::Global(Global::Storage(dtype)),
                    Value::Str(key),
                    _,
                    numel,
                ],
            ) => numel.as_usize().map(|numel| (dtype, key, numel)),
            _ => None,
        };
        let storage = storage.ok_or("refers to a storage in an unknown way")?;
        self.heap.storages.push(storage);
        self.push(Value::Storage(self.heap.storages.len() - 1))
    }

    fn reduce(&mut self) -> Step {
        let args = self.pop()?;
        let Value::Global(global) = self.pop()? else {
            return Err("calls what is no function".into());
        };
        let args = self
            .heap
            .items(args)
            .ok_or("calls a function without arguments")?
            .to_vec();
        let value = match (global, &args[..]) {
            (Global::OrderedDict, []) => self.heap.new_dict(),
            (Global::RebuildParameter, [tensor @ Value::Tensor(_), ..]) => *tensor,
            (Global::Typed, [value, ..]) => *value,
            (Global::RebuildTensor, [Value::Storage(storage), offset, shape, strides, ..]) => {
                let sizes = (
                    offset.as_usize(),
                    self.heap.sizes(*shape),
                    self.heap.sizes(*strides),
                );
                let (Some(offset), Some(shape), Some(strides)) = sizes else {
                    return Err("rebuilds a tensor from what is no shape".into());
                };
                let (dtype, key, numel) = self.heap.storages[*storage];
                let tensor = RawTensor {
                    dtype,
                    key,
                    numel,
                    offset,
                    shape,
                    strides,
                };
                self.heap.tensors.push(tensor);
                Value::Tensor(self.heap.tensors.len() - 1)
            }
            _ => return Err(format!("calls {global:?} with unexpected arguments")),
        };
        self.push(value)
    }

    /// Of a TorchScript program's classes alone; they have no arguments.
    fn new_object(&mut self) -> Step {
        match self.pop_n(2)?[..] {
            [Value::Global(Global::Module), _] => {
                self.heap.dicts.push(Vec::new());
                self.push(Value::Module(self.heap.dicts.len() - 1))
            }
            _ => Err("makes an object of what is no TorchScript class".into()),
        }
    }

    /// Gives a module its attributes. Those of an OrderedDict (torch's _metadata) are not needed.
    fn build(&mut self) -> Step {
        let state = self.pop()?;
        if let (Value::Module(id), Value::Dict(state)) = (self.top()?, state) {
            self.heap.dicts[id] = self.heap.dicts[state].clone();
        }
        Ok(())
    }

    fn push(&mut self, value: Value) -> Step {
        self.stack.push(value);
        Ok(())
    }

    /// Values below the last mark belong to whatever is still open.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn top(&self) -> Step<Value> {
        match self.stack.last() {
            Some(&value) if self.stack.len() > self.floor() => Ok(value),
            _ => Err("is damaged: it takes a value that is not there".into()),
        }
    }

    fn pop(&mut self) -> Step<Value> {
        let value = self.top()?;
        self.stack.pop();
        Ok(value)
    }

    fn pop_n(&mut self, n: usize) -> Step<Vec<Value>> {
        match self.stack.len().checked_sub(n) {
            Some(at) if at >= self.floor() => Ok(self.stack.split_off(at)),
            _ => Err("is damaged: it takes values that are not there".into()),
        }
    }

    fn pop_mark(&mut self) -> Step<Vec<Value>> {
        let mark = self
            .marks
            .pop()
            .ok_or("is damaged: it closes what was never opened")?;
        Ok(self.stack.split_off(mark))
    }

    fn take(&mut self, n: usize) -> Step<&'a [u8]> {
        let end = self.at.checked_add(n).filter(|&end| end <= self.code.len());
        let end = end.ok_or("is truncated; copy or download the file again")?;
        let bytes = &self.code[self.at..end];
        self.at = end;
        Ok(bytes)
    }

    fn byte(&mut self) -> Step<u8> {
        self.take(1).map(|b| b[0])
    }

    /// An unsigned length of `n` bytes.
    fn length(&mut self, n: usize) -> Step<usize> {
        self.little_endian(n, false)?
            .as_usize()
            .ok_or_else(|| "has a negative length".into())
    }

    fn line(&mut self) -> Step<&'a str> {
        let rest = &self.code[self.at..];
        let len = rest
            .iter()
            .position(|&b| b == b'\n')
            .ok_or("is truncated inside a line")?;
        self.at += len + 1;
        std::str::from_utf8(&rest[..len]).map_err(|_| "holds a line that is not UTF-8".into())
    }
}
