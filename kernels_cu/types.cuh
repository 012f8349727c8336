// Integers of fixed width without headers: NVRTC has none to include, and CUDA's are not needed.
#pragma once

using i32 = int;
using i64 = long long;
using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;

static_assert(sizeof(u16) == 2 && sizeof(i32) == 4 && sizeof(i64) == 8, "the host packs kernel parameters by these widths");
