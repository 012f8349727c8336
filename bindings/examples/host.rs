//! Attention from Rust, on the CPU: statuses as Results, tensors that borrow slices, a block mask that drops itself.
//!
//!     rustc --edition 2021 host.rs -o host_rs -C link-args="$(flashcupy capi --libs)"

use std::error::Error;
use std::ffi::CStr;
use std::fmt;
use std::marker::PhantomData;
use std::ptr;

#[path = "../rust/flashcupy.rs"]
mod flashcupy;

use flashcupy as fc;

// ---- what a program would keep -------------------------------------------------------------------------------------

#[derive(Debug)]
struct Refused {
    status: fc::Status,
    message: String,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let name = unsafe { CStr::from_ptr(fc::flashcupy_status_string(self.status)) };
        write!(f, "{}: {}", name.to_string_lossy(), self.message)
    }
}

impl Error for Refused {}

fn check(status: fc::Status) -> Result<(), Refused> {
    if status == fc::FLASHCUPY_OK {
        return Ok(());
    }
    let message = unsafe { CStr::from_ptr(fc::flashcupy_last_error()) };
    Err(Refused { status, message: message.to_string_lossy().into_owned() })
}

/// Types that tensors are made of here.
trait Element: Copy {
    const CODE: u8;
}

impl Element for f32 {
    const CODE: u8 = fc::FLASHCUPY_FLOAT;
}

impl Element for i32 {
    const CODE: u8 = fc::FLASHCUPY_INT;
}

impl Element for bool {
    const CODE: u8 = fc::FLASHCUPY_BOOL;
}

/// A row-major tensor that borrows its elements and its shape.
struct Tensor<'a> {
    raw: fc::Tensor,
    borrowed: PhantomData<&'a mut ()>,
}

impl<'a> Tensor<'a> {
    fn read<T: Element>(values: &'a [T], shape: &'a [i64]) -> Self {
        Self::of(values.as_ptr().cast_mut(), values.len(), shape)
    }

    fn write<T: Element>(values: &'a mut [T], shape: &'a [i64]) -> Self {
        Self::of(values.as_mut_ptr(), values.len(), shape)
    }

    fn of<T: Element>(data: *mut T, count: usize, shape: &'a [i64]) -> Self {
        assert_eq!(shape.iter().product::<i64>(), count as i64, "values do not fill the shape");
        let raw = fc::Tensor {
            data: data.cast(),
            device: fc::Device { device_type: fc::FLASHCUPY_CPU, device_id: 0 },
            ndim: shape.len() as i32,
            dtype: fc::Dtype { code: T::CODE, bits: 8 * size_of::<T>() as u8, lanes: 1 },
            shape: shape.as_ptr(),
            strides: ptr::null(),
            byte_offset: 0,
        };
        Self { raw, borrowed: PhantomData }
    }
}

struct BlockMask(*mut fc::BlockMask);

impl BlockMask {
    fn from_blocks(options: &fc::BlockMaskOptions, blocks: &Tensor) -> Result<Self, Refused> {
        let mut mask = ptr::null_mut();
        check(unsafe { fc::flashcupy_block_mask_from_blocks(options, &blocks.raw, ptr::null_mut(), &mut mask) })?;
        Ok(Self(mask))
    }

    fn update(&mut self, blocks: &Tensor) -> Result<(), Refused> {
        check(unsafe { fc::flashcupy_block_mask_update_from_blocks(self.0, &blocks.raw, ptr::null_mut()) })
    }

    fn check(&self) -> Result<(), Refused> {
        check(unsafe { fc::flashcupy_block_mask_check(self.0) })
    }
}

impl Drop for BlockMask {
    fn drop(&mut self) {
        unsafe { fc::flashcupy_block_mask_destroy(self.0) };
    }
}

/// A call's operands and results: q and its like (heads, rows, dim).
struct Attention {
    q_shape: [i64; 3],
    k_shape: [i64; 3],
    v_shape: [i64; 3],
    out_shape: [i64; 3],
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    out: Vec<f32>,
    lse: Vec<f32>,
    dout: Vec<f32>,
    dq: Vec<f32>,
    dk: Vec<f32>,
    dv: Vec<f32>,
}

impl Attention {
    fn new(q_shape: [i64; 3], k_shape: [i64; 3], v_dim: i64, seed: u32) -> Self {
        let v_shape = [k_shape[0], k_shape[1], v_dim];
        let out_shape = [q_shape[0], q_shape[1], v_dim];
        let count = |shape: [i64; 3]| shape.iter().product::<i64>() as usize;
        Self {
            q_shape,
            k_shape,
            v_shape,
            out_shape,
            q: numbers(count(q_shape), seed),
            k: numbers(count(k_shape), seed + 1),
            v: numbers(count(v_shape), seed + 2),
            out: vec![0.0; count(out_shape)],
            lse: vec![0.0; (q_shape[0] * q_shape[1]) as usize],
            dout: numbers(count(out_shape), seed + 3),
            dq: vec![0.0; count(q_shape)],
            dk: vec![0.0; count(k_shape)],
            dv: vec![0.0; count(v_shape)],
        }
    }

    fn forward(&mut self, options: &fc::Options) -> Result<(), Refused> {
        let (q, k) = (Tensor::read(&self.q, &self.q_shape), Tensor::read(&self.k, &self.k_shape));
        let v = Tensor::read(&self.v, &self.v_shape);
        let out = Tensor::write(&mut self.out, &self.out_shape);
        let lse = Tensor::write(&mut self.lse, &self.q_shape[..2]);
        check(unsafe { fc::flashcupy_forward(&q.raw, &k.raw, &v.raw, &out.raw, &lse.raw, options, ptr::null_mut()) })
    }

    fn backward(&mut self, options: &fc::Options) -> Result<(), Refused> {
        let (q, k) = (Tensor::read(&self.q, &self.q_shape), Tensor::read(&self.k, &self.k_shape));
        let v = Tensor::read(&self.v, &self.v_shape);
        let out = Tensor::read(&self.out, &self.out_shape);
        let lse = Tensor::read(&self.lse, &self.q_shape[..2]);
        let dout = Tensor::read(&self.dout, &self.out_shape);
        let dq = Tensor::write(&mut self.dq, &self.q_shape);
        let dk = Tensor::write(&mut self.dk, &self.k_shape);
        let dv = Tensor::write(&mut self.dv, &self.v_shape);
        let none = ptr::null();
        check(unsafe {
            fc::flashcupy_backward(
                &q.raw,
                &k.raw,
                &v.raw,
                &out.raw,
                &lse.raw,
                &dout.raw,
                none,
                &dq.raw,
                &dk.raw,
                &dv.raw,
                none,
                none,
                options,
                ptr::null_mut(),
            )
        })
    }

    fn compare(&self, case: &str) -> Result<(), Box<dyn Error>> {
        let results = [("out", &self.out), ("lse", &self.lse), ("dq", &self.dq), ("dk", &self.dk), ("dv", &self.dv)];
        for (name, got) in results {
            let bound = if name.starts_with('d') { GRADIENT_BOUND } else { RESULT_BOUND };
            compare(&format!("{case}_{name}"), got, bound)?;
        }
        Ok(())
    }
}

// ---- inputs, and what is expected ----------------------------------------------------------------------------------

/// The largest error that float32 explains, relative to the largest value. A rounding is 2^-24 = 6e-8; the sums here
/// have up to 60 terms, whose roundings mostly cancel: 2e-6 is 32 of them. A gradient chains three such sums.
const RESULT_BOUND: f64 = 2e-6;
const GRADIENT_BOUND: f64 = 6e-6;

/// Values in [-1, 1) from a hash of index and seed: multiples of 2^-23, the same in every language.
fn numbers(count: usize, seed: u32) -> Vec<f32> {
    let hash = |i: u32| {
        let mut x = i.wrapping_mul(0x9E37_79B9).wrapping_add(seed);
        x = (x ^ x >> 16).wrapping_mul(0x85EB_CA6B);
        x = (x ^ x >> 13).wrapping_mul(0xC2B2_AE35);
        (x ^ x >> 16) >> 8
    };
    (0..count as u32).map(|i| (hash(i) as i32 - (1 << 23)) as f32 / (1 << 23) as f32).collect()
}

/// The values of an array in expected.h.
fn expected(name: &str) -> Vec<f64> {
    let text = include_str!("expected.h");
    let start = text.find(&format!(" {name}_expected[")).expect("expected.h has the name");
    let values = &text[start..];
    let values = &values[values.find('{').unwrap() + 1..values.find('}').unwrap()];
    values.split(',').map(|value| value.trim().replace("-INFINITY", "-inf").parse().unwrap()).collect()
}

fn compare(name: &str, got: &[f32], bound: f64) -> Result<(), String> {
    let expected = expected(name);
    assert_eq!(got.len(), expected.len());
    let (mut error, mut largest) = (0.0_f64, 0.0_f64);
    for (&got, &expected) in got.iter().zip(&expected) {
        let got = f64::from(got);
        if got == expected {
            largest = largest.max(if expected.is_finite() { expected.abs() } else { 0.0 });
        } else if got.is_finite() && expected.is_finite() {
            error = error.max((got - expected).abs());
            largest = largest.max(expected.abs());
        } else {
            return Err(format!("{name} has {got}, expected {expected}"));
        }
    }
    if error <= bound * largest {
        return Ok(());
    }
    Err(format!("{name}: off by {:.1e} of its largest value, at most {bound:.0e} is right", error / largest))
}

// ---- the cases -----------------------------------------------------------------------------------------------------

/// Four query heads that share two heads of keys and values in pairs.
fn causal() -> Result<(), Box<dyn Error>> {
    let mut attention = Attention::new([4, 21, 24], [2, 33, 24], 16, 1);
    let options = fc::Options { causal: fc::FLASHCUPY_BOTTOM_RIGHT, ..Default::default() };
    attention.forward(&options)?;
    attention.backward(&options)?;
    attention.compare("causal")
}

/// Sequences of 6, 0 and 13 queries, one after the other without padding.
fn packed() -> Result<(), Box<dyn Error>> {
    let mut attention = Attention::new([2, 20, 16], [1, 30, 16], 16, 11);
    let cu_q = Tensor::read(&[0_i32, 6, 6, 19], &[4]);
    let cu_k = Tensor::read(&[0_i32, 9, 14, 28], &[4]);
    let options = fc::Options {
        causal: fc::FLASHCUPY_BOTTOM_RIGHT,
        cu_seqlens_q: &cu_q.raw,
        cu_seqlens_k: &cu_k.raw,
        ..Default::default()
    };
    attention.forward(&options)?;
    attention.backward(&options)?;
    attention.compare("packed")
}

fn table_options(capacity: i64) -> fc::BlockMaskOptions {
    fc::BlockMaskOptions { q_len: 24, kv_len: 40, block_q: 16, block_k: 16, capacity, ..Default::default() }
}

/// A mask from a table of blocks, and other blocks in the same memory.
fn blocks() -> Result<(), Box<dyn Error>> {
    let mut attention = Attention::new([2, 24, 8], [1, 40, 8], 8, 21);
    let first = Tensor::read(&[true, false, true, false, true, false], &[2, 3]);
    let second = Tensor::read(&[false, true, false, true, true, true], &[2, 3]);

    let mut mask = BlockMask::from_blocks(&table_options(4), &first)?;
    let options = fc::Options { block_mask: mask.0, ..Default::default() };
    attention.forward(&options)?;
    attention.backward(&options)?;
    attention.compare("blocks")?;

    mask.update(&second)?;
    mask.check()?;
    attention.forward(&options)?;
    attention.backward(&options)?;
    attention.compare("updated")
}

fn refused(argument: &str, result: Result<(), Refused>) -> Result<(), Box<dyn Error>> {
    match result {
        Err(error) if error.status == fc::FLASHCUPY_INVALID_ARGUMENT && error.message.contains(argument) => Ok(()),
        Err(error) => Err(error.into()),
        Ok(()) => Err(format!("nothing was said against {argument}").into()),
    }
}

/// What went wrong arrives as an Err that names it, and nothing was written.
fn errors() -> Result<(), Box<dyn Error>> {
    let mut attention = Attention::new([2, 24, 8], [1, 40, 8], 8, 1);
    let no_flag = fc::Options { scale: 0.5, ..Default::default() };
    refused("FLASHCUPY_HAS_SCALE", attention.forward(&no_flag))?;
    let no_size = fc::Options { struct_size: 0, ..Default::default() };
    refused("struct_size", attention.forward(&no_size))?;
    let full = Tensor::read(&[true; 6], &[2, 3]);
    refused(
        "block_q",
        BlockMask::from_blocks(&fc::BlockMaskOptions { block_q: 48, ..table_options(0) }, &full).map(drop),
    )?;
    let mask = BlockMask::from_blocks(&table_options(0), &full)?;
    let options = fc::Options { block_mask: mask.0, ..Default::default() };
    drop(mask);
    refused("block_mask", attention.forward(&options))?;
    if attention.out.iter().chain(&attention.lse).any(|&x| x != 0.0) {
        return Err("a call that was refused has written results".into());
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    causal()?;
    packed()?;
    blocks()?;
    errors()?;
    check(unsafe { fc::flashcupy_shutdown() })?;
    let version = unsafe { CStr::from_ptr(fc::flashcupy_version()) }.to_str()?;
    println!("flashcupy {version}: causal, packed, block masks, errors as Results: all as expected");
    Ok(())
}
