//! Declarations of `flashcupy.h`, by which each is explained. Link with what `flashcupy capi --libs` prints.

#![allow(dead_code)]

use std::ffi::{c_char, c_void};

pub const FLASHCUPY_ABI_VERSION: i32 = 1;

/// Any number may come back from a newer library: hence no enum.
pub type Status = i32;

pub const FLASHCUPY_OK: Status = 0;
pub const FLASHCUPY_INVALID_ARGUMENT: Status = 1;
pub const FLASHCUPY_UNSUPPORTED: Status = 2;
pub const FLASHCUPY_OUT_OF_MEMORY: Status = 3;
pub const FLASHCUPY_COMPILE: Status = 4;
pub const FLASHCUPY_CUDA: Status = 5;
pub const FLASHCUPY_PYTHON: Status = 6;
pub const FLASHCUPY_NOT_WARMED_UP: Status = 7;
pub const FLASHCUPY_FORKED: Status = 8;
pub const FLASHCUPY_INTERNAL: Status = 9;

// Device::device_type
pub const FLASHCUPY_CPU: i32 = 1;
pub const FLASHCUPY_CUDA_DEVICE: i32 = 2;
pub const FLASHCUPY_CUDA_HOST: i32 = 3;
pub const FLASHCUPY_CUDA_MANAGED: i32 = 13;

// Dtype::code
pub const FLASHCUPY_INT: u8 = 0;
pub const FLASHCUPY_UINT: u8 = 1;
pub const FLASHCUPY_FLOAT: u8 = 2;
pub const FLASHCUPY_BFLOAT: u8 = 4;
pub const FLASHCUPY_BOOL: u8 = 6;

// Options::causal
pub const FLASHCUPY_NOT_CAUSAL: i32 = 0;
pub const FLASHCUPY_BOTTOM_RIGHT: i32 = 1;
pub const FLASHCUPY_TOP_LEFT: i32 = 2;

// Options::precision
pub const FLASHCUPY_HIGHEST: i32 = 0;
pub const FLASHCUPY_TF32: i32 = 1;

// Options::flags
pub const FLASHCUPY_HAS_SCALE: u32 = 1;
pub const FLASHCUPY_HAS_SOFTCAP: u32 = 2;
pub const FLASHCUPY_HAS_WINDOW_LEFT: u32 = 4;
pub const FLASHCUPY_HAS_WINDOW_RIGHT: u32 = 8;
pub const FLASHCUPY_HAS_SEED: u32 = 16;
pub const FLASHCUPY_HAS_MAX_SEQLEN_Q: u32 = 32;
pub const FLASHCUPY_HAS_MAX_SEQLEN_K: u32 = 64;
pub const FLASHCUPY_DETERMINISTIC: u32 = 128;

// the level of a message
pub const FLASHCUPY_LOG_DEBUG: i32 = 10;
pub const FLASHCUPY_LOG_INFO: i32 = 20;
pub const FLASHCUPY_LOG_WARNING: i32 = 30;
pub const FLASHCUPY_LOG_ERROR: i32 = 40;

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Device {
    pub device_type: i32,
    pub device_id: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Dtype {
    pub code: u8,
    pub bits: u8,
    pub lanes: u16,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Tensor {
    pub data: *mut c_void,
    pub device: Device,
    pub ndim: i32,
    pub dtype: Dtype,
    pub shape: *const i64,
    pub strides: *const i64,
    pub byte_offset: u64,
}

/// What a block mask's handle points to: nothing that is ever looked at.
#[repr(C)]
pub struct BlockMask {
    _opaque: [u8; 0],
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct BlockMaskOptions {
    pub struct_size: u32,
    pub flags: u32,
    pub q_len: i64,
    pub kv_len: i64,
    pub block_q: i32,
    pub block_k: i32,
    pub batch: i64,
    pub heads: i64,
    pub capacity: i64,
    pub partial_capacity: i64,
    pub device: Device,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub struct_size: u32,
    pub flags: u32,
    pub causal: i32,
    pub precision: i32,
    pub scale: f64,
    pub softcap: f64,
    pub dropout: f64,
    pub window_left: i64,
    pub window_right: i64,
    pub seed: u64,
    pub seed_offset: u64,
    pub mask: *const Tensor,
    pub bias: *const Tensor,
    pub alibi_slopes: *const Tensor,
    pub sinks: *const Tensor,
    pub q_lengths: *const Tensor,
    pub kv_lengths: *const Tensor,
    pub seed_words: *const Tensor,
    pub cu_seqlens_q: *const Tensor,
    pub cu_seqlens_k: *const Tensor,
    pub max_seqlen_q: i64,
    pub max_seqlen_k: i64,
    pub block_mask: *mut BlockMask,
    pub workspace: *mut c_void,
    pub workspace_size: u64,
}

macro_rules! default_is_zero {
    ($name:ident) => {
        impl Default for $name {
            /// All zero but struct_size.
            fn default() -> Self {
                // Numbers and pointers, for which zero bytes are 0 and null.
                let zeroed: Self = unsafe { std::mem::zeroed() };
                Self { struct_size: std::mem::size_of::<Self>() as u32, ..zeroed }
            }
        }
    };
}

default_is_zero!(Options);
default_is_zero!(BlockMaskOptions);

pub type LogCallback = Option<unsafe extern "C" fn(user: *mut c_void, level: i32, message: *const c_char)>;

#[link(name = "flashcupy")]
unsafe extern "C" {
    pub fn flashcupy_status_string(status: Status) -> *const c_char;
    pub fn flashcupy_last_error() -> *const c_char;
    pub fn flashcupy_version() -> *const c_char;
    pub fn flashcupy_abi_version() -> i32;

    pub fn flashcupy_block_mask_from_blocks(
        options: *const BlockMaskOptions,
        blocks: *const Tensor,
        stream: *mut c_void,
        mask: *mut *mut BlockMask,
    ) -> Status;
    pub fn flashcupy_block_mask_from_csr(
        options: *const BlockMaskOptions,
        indptr: *const Tensor,
        indices: *const Tensor,
        partial: *const Tensor,
        bits: *const Tensor,
        stream: *mut c_void,
        mask: *mut *mut BlockMask,
    ) -> Status;
    pub fn flashcupy_block_mask_update_from_blocks(
        mask: *mut BlockMask,
        blocks: *const Tensor,
        stream: *mut c_void,
    ) -> Status;
    pub fn flashcupy_block_mask_update_from_csr(
        mask: *mut BlockMask,
        indptr: *const Tensor,
        indices: *const Tensor,
        partial: *const Tensor,
        bits: *const Tensor,
        stream: *mut c_void,
    ) -> Status;
    pub fn flashcupy_block_mask_check(mask: *mut BlockMask) -> Status;
    pub fn flashcupy_block_mask_destroy(mask: *mut BlockMask) -> Status;

    pub fn flashcupy_forward(
        q: *const Tensor,
        k: *const Tensor,
        v: *const Tensor,
        out: *const Tensor,
        lse: *const Tensor,
        options: *const Options,
        stream: *mut c_void,
    ) -> Status;
    pub fn flashcupy_backward(
        q: *const Tensor,
        k: *const Tensor,
        v: *const Tensor,
        out: *const Tensor,
        lse: *const Tensor,
        dout: *const Tensor,
        dlse: *const Tensor,
        dq: *const Tensor,
        dk: *const Tensor,
        dv: *const Tensor,
        dbias: *const Tensor,
        dsinks: *const Tensor,
        options: *const Options,
        stream: *mut c_void,
    ) -> Status;
    pub fn flashcupy_forward_workspace_size(
        q: *const Tensor,
        k: *const Tensor,
        v: *const Tensor,
        out: *const Tensor,
        lse: *const Tensor,
        options: *const Options,
        size: *mut u64,
    ) -> Status;
    pub fn flashcupy_backward_workspace_size(
        q: *const Tensor,
        k: *const Tensor,
        v: *const Tensor,
        out: *const Tensor,
        lse: *const Tensor,
        dout: *const Tensor,
        dlse: *const Tensor,
        dq: *const Tensor,
        dk: *const Tensor,
        dv: *const Tensor,
        dbias: *const Tensor,
        dsinks: *const Tensor,
        options: *const Options,
        size: *mut u64,
    ) -> Status;
    pub fn flashcupy_supported(
        q: *const Tensor,
        k: *const Tensor,
        v: *const Tensor,
        options: *const Options,
        reason: *mut *const c_char,
    ) -> Status;
    pub fn flashcupy_warmup(
        q: *const Tensor,
        k: *const Tensor,
        v: *const Tensor,
        options: *const Options,
        backward: i32,
    ) -> Status;

    pub fn flashcupy_init() -> Status;
    pub fn flashcupy_shutdown() -> Status;
    pub fn flashcupy_set_num_threads(threads: i32) -> Status;
    pub fn flashcupy_set_log_callback(callback: LogCallback, user: *mut c_void) -> Status;
}
