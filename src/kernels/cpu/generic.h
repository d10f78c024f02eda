// The kernels, written once over vectors of eight floats. An instruction set's file defines, in an unnamed namespace,
// the vector types V (8 floats) and B16 (16 bytes) with the functions used below, and then includes this file, which
// goes into the same unnamed namespace: nothing compiled with special flags may be visible to other files.
//
// Canonical order of a dot product over K: lane j of one vector accumulates the elements k = j (mod 8) in ascending
// order with fma(w, x, sum), padded with zeros to whole vectors; then hsum() adds the lanes in a fixed tree. Every
// path below computes exactly that.
//
// Not a header in the usual sense: include it once, after the vector types.
#pragma once

#define XGEN_INLINE [[gnu::always_inline]] inline

namespace xgen::kernels::cpu {
namespace {

using i64 = std::int64_t;
using Byte = std::byte;

constexpr int kLanes = 8;

XGEN_INLINE i64 min_of(i64 a, i64 b) { return a < b ? a : b; }
XGEN_INLINE i64 max_of(i64 a, i64 b) { return a > b ? a : b; }

template <class T>
XGEN_INLINE T read(const Byte* p) {
  T value;
  __builtin_memcpy(&value, p, sizeof value);
  return value;
}
XGEN_INLINE float read_half(const Byte* p) { return half_to_float(read<std::uint16_t>(p)); }
XGEN_INLINE unsigned read_u8(const Byte* p) { return static_cast<unsigned>(*p); }

// --- Weight formats. block(row, b, out) gives elements [32 b, 32 b + 32) of a row as F32. ggml's block layouts:
// https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h. All products below are exact in F32 except Q6_K's
// last one, so the results equal the reference's whatever the rounding of its steps.

template <DType>
struct Format;

template <class F>
struct PlainFormat {
  static constexpr bool plain = true;
  XGEN_INLINE static void block(const Byte* row, i64 b, V (&out)[4]) {
    for (int j = 0; j < 4; ++j) out[j] = F::load(row + (b * 32 + j * kLanes) * F::size);
  }
  // The last n < 32 elements from 32 b; vectors beyond them are zero.
  XGEN_INLINE static void tail(const Byte* row, i64 b, int n, V (&out)[4]) {
    alignas(32) Byte padded[32 * F::size] = {};
    __builtin_memcpy(padded, row + b * 32 * F::size, static_cast<std::size_t>(n) * F::size);
    for (int j = 0; j < 4; ++j) out[j] = F::load(padded + j * kLanes * F::size);
  }
};
template <>
struct Format<DType::f32> : PlainFormat<Format<DType::f32>> {
  static constexpr int size = 4;
  XGEN_INLINE static V load(const Byte* p) { return load_f32(p); }
};
template <>
struct Format<DType::f16> : PlainFormat<Format<DType::f16>> {
  static constexpr int size = 2;
  XGEN_INLINE static V load(const Byte* p) { return load_f16(p); }
};
template <>
struct Format<DType::bf16> : PlainFormat<Format<DType::bf16>> {
  static constexpr int size = 2;
  XGEN_INLINE static V load(const Byte* p) { return load_bf16(p); }
};

struct BlockFormat {
  static constexpr bool plain = false;
  XGEN_INLINE static void tail(const Byte*, i64, int, V (&)[4]) {}  // a row is whole blocks
};

// out = q * d for 32 signed bytes.
XGEN_INLINE void scaled(B16 lo, B16 hi, V d, V (&out)[4]) {
  to_float(lo, out[0], out[1]);
  to_float(hi, out[2], out[3]);
  for (V& v : out) v = mul(v, d);
}
// out = q * d + m.
XGEN_INLINE void scaled(B16 lo, B16 hi, V d, V m, V (&out)[4]) {
  to_float(lo, out[0], out[1]);
  to_float(hi, out[2], out[3]);
  for (V& v : out) v = fma(v, d, m);
}
// Two halves of 16 with a scale each.
XGEN_INLINE void scaled_halves(B16 lo, B16 hi, float d0, float d1, V (&out)[4]) {
  to_float(lo, out[0], out[1]);
  to_float(hi, out[2], out[3]);
  const V s0 = set1(d0);
  const V s1 = set1(d1);
  out[0] = mul(out[0], s0);
  out[1] = mul(out[1], s0);
  out[2] = mul(out[2], s1);
  out[3] = mul(out[3], s1);
}

template <>
struct Format<DType::q8_0> : BlockFormat {
  XGEN_INLINE static void block(const Byte* row, i64 b, V (&out)[4]) {
    const Byte* p = row + b * 34;
    scaled(load16(p + 2), load16(p + 18), set1(read_half(p)), out);
  }
};
template <>
struct Format<DType::q4_0> : BlockFormat {
  XGEN_INLINE static void block(const Byte* row, i64 b, V (&out)[4]) {
    const Byte* p = row + b * 18;
    const B16 q = load16(p + 2);
    scaled(subtract(low_bits<15>(q), 8), subtract(low_bits<15>(shift_right<4>(q)), 8), set1(read_half(p)), out);
  }
};
template <>
struct Format<DType::q4_1> : BlockFormat {
  XGEN_INLINE static void block(const Byte* row, i64 b, V (&out)[4]) {
    const Byte* p = row + b * 20;
    const B16 q = load16(p + 4);
    scaled(low_bits<15>(q), low_bits<15>(shift_right<4>(q)), set1(read_half(p)), set1(read_half(p + 2)), out);
  }
};
template <>
struct Format<DType::q5_0> : BlockFormat {
  XGEN_INLINE static void block(const Byte* row, i64 b, V (&out)[4]) {
    const Byte* p = row + b * 22;
    const std::uint32_t high = read<std::uint32_t>(p + 2);
    const B16 q = load16(p + 6);
    const B16 lo = combine(low_bits<15>(q), spread_bits<16>(high & 0xffff));
    const B16 hi = combine(low_bits<15>(shift_right<4>(q)), spread_bits<16>(high >> 16));
    scaled(subtract(lo, 16), subtract(hi, 16), set1(read_half(p)), out);
  }
};
template <>
struct Format<DType::q5_1> : BlockFormat {
  XGEN_INLINE static void block(const Byte* row, i64 b, V (&out)[4]) {
    const Byte* p = row + b * 24;
    const std::uint32_t high = read<std::uint32_t>(p + 4);
    const B16 q = load16(p + 8);
    const B16 lo = combine(low_bits<15>(q), spread_bits<16>(high & 0xffff));
    const B16 hi = combine(low_bits<15>(shift_right<4>(q)), spread_bits<16>(high >> 16));
    scaled(lo, hi, set1(read_half(p)), set1(read_half(p + 2)), out);
  }
};

// Bits [2 j, 2 j + 2) of every byte.
XGEN_INLINE B16 two_bits(B16 q, int j) {
  switch (j) {
    case 0:
      return low_bits<3>(q);
    case 1:
      return low_bits<3>(shift_right<2>(q));
    case 2:
      return low_bits<3>(shift_right<4>(q));
    default:
      return low_bits<3>(shift_right<6>(q));
  }
}

template <>
struct Format<DType::q2_k> : BlockFormat {  // scales[16], qs[64], d, dmin
  XGEN_INLINE static void block(const Byte* row, i64 b, V (&out)[4]) {
    const Byte* p = row + b / 8 * 84;
    const int sub = static_cast<int>(b % 8);
    const Byte* q = p + 16 + sub / 4 * 32;
    const float d = read_half(p + 80);
    const float dmin = read_half(p + 82);
    const unsigned s0 = read_u8(p + 2 * sub);
    const unsigned s1 = read_u8(p + 2 * sub + 1);
    to_float(two_bits(load16(q), sub % 4), out[0], out[1]);
    to_float(two_bits(load16(q + 16), sub % 4), out[2], out[3]);
    const V d0 = set1(d * static_cast<float>(s0 & 15));
    const V d1 = set1(d * static_cast<float>(s1 & 15));
    const V m0 = set1(-(dmin * static_cast<float>(s0 >> 4)));
    const V m1 = set1(-(dmin * static_cast<float>(s1 >> 4)));
    out[0] = fma(out[0], d0, m0);
    out[1] = fma(out[1], d0, m0);
    out[2] = fma(out[2], d1, m1);
    out[3] = fma(out[3], d1, m1);
  }
};

template <>
struct Format<DType::q3_k> : BlockFormat {  // hmask[32], qs[64], scales[12], d
  XGEN_INLINE static float scale(const Byte* scales, int i) {
    const unsigned low = i < 8 ? read_u8(scales + i) & 15 : read_u8(scales + i - 8) >> 4;
    const unsigned high = read_u8(scales + 8 + i % 4) >> (2 * (i / 4)) & 3;
    return static_cast<float>(static_cast<int>(low | high << 4) - 32);
  }
  XGEN_INLINE static void block(const Byte* row, i64 b, V (&out)[4]) {
    const Byte* p = row + b / 8 * 110;
    const int sub = static_cast<int>(b % 8);
    const Byte* q = p + 32 + sub / 4 * 32;
    const float d = read_half(p + 108);
    // The high bit stands for +4, and 4 is subtracted from all.
    const B16 lo = combine(two_bits(load16(q), sub % 4), bit_as<4>(load16(p), sub));
    const B16 hi = combine(two_bits(load16(q + 16), sub % 4), bit_as<4>(load16(p + 16), sub));
    scaled_halves(subtract(lo, 4), subtract(hi, 4), d * scale(p + 96, 2 * sub), d * scale(p + 96, 2 * sub + 1), out);
  }
};

// The 6-bit scale and minimum of sub-block `sub` of Q4_K and Q5_K.
XGEN_INLINE void scale_and_min(const Byte* scales, int sub, float& scale, float& minimum) {
  unsigned s;
  unsigned m;
  if (sub < 4) {
    s = read_u8(scales + sub) & 63;
    m = read_u8(scales + sub + 4) & 63;
  } else {
    s = (read_u8(scales + sub + 4) & 15) | (read_u8(scales + sub - 4) >> 6) << 4;
    m = read_u8(scales + sub + 4) >> 4 | (read_u8(scales + sub) >> 6) << 4;
  }
  scale = static_cast<float>(s);
  minimum = static_cast<float>(m);
}

template <>
struct Format<DType::q4_k> : BlockFormat {  // d, dmin, scales[12], qs[128]
  XGEN_INLINE static void block(const Byte* row, i64 b, V (&out)[4]) {
    const Byte* p = row + b / 8 * 144;
    const int sub = static_cast<int>(b % 8);
    float s;
    float m;
    scale_and_min(p + 4, sub, s, m);
    const Byte* q = p + 16 + sub / 2 * 32;
    B16 lo = load16(q);
    B16 hi = load16(q + 16);
    if (sub % 2 != 0) {
      lo = shift_right<4>(lo);
      hi = shift_right<4>(hi);
    }
    scaled(low_bits<15>(lo), low_bits<15>(hi), set1(read_half(p) * s), set1(-(read_half(p + 2) * m)), out);
  }
};
template <>
struct Format<DType::q5_k> : BlockFormat {  // d, dmin, scales[12], qh[32], qs[128]
  XGEN_INLINE static void block(const Byte* row, i64 b, V (&out)[4]) {
    const Byte* p = row + b / 8 * 176;
    const int sub = static_cast<int>(b % 8);
    float s;
    float m;
    scale_and_min(p + 4, sub, s, m);
    const Byte* q = p + 48 + sub / 2 * 32;
    B16 lo = load16(q);
    B16 hi = load16(q + 16);
    if (sub % 2 != 0) {
      lo = shift_right<4>(lo);
      hi = shift_right<4>(hi);
    }
    lo = combine(low_bits<15>(lo), bit_as<16>(load16(p + 16), sub));
    hi = combine(low_bits<15>(hi), bit_as<16>(load16(p + 32), sub));
    scaled(lo, hi, set1(read_half(p) * s), set1(-(read_half(p + 2) * m)), out);
  }
};
template <>
struct Format<DType::q6_k> : BlockFormat {  // ql[128], qh[64], scales[16], d
  XGEN_INLINE static void block(const Byte* row, i64 b, V (&out)[4]) {
    const Byte* p = row + b / 8 * 210;
    const int sub = static_cast<int>(b % 8);
    const Byte* ql = p + sub / 4 * 64 + sub % 2 * 32;
    const Byte* qh = p + 128 + sub / 4 * 32;
    B16 lo = load16(ql);
    B16 hi = load16(ql + 16);
    if (sub % 4 >= 2) {
      lo = shift_right<4>(lo);
      hi = shift_right<4>(hi);
    }
    lo = combine(low_bits<15>(lo), shift_left<4>(two_bits(load16(qh), sub % 4)));
    hi = combine(low_bits<15>(hi), shift_left<4>(two_bits(load16(qh + 16), sub % 4)));
    const float d = read_half(p + 208);
    const auto s0 = static_cast<float>(read<std::int8_t>(p + 192 + 2 * sub));
    const auto s1 = static_cast<float>(read<std::int8_t>(p + 192 + 2 * sub + 1));
    scaled_halves(subtract(lo, 32), subtract(hi, 32), d * s0, d * s1, out);
  }
};

// Calls fn with Format<type>.
template <class Fn>
XGEN_INLINE void with_format(DType type, Fn&& fn) {
  switch (type) {
    case DType::f32:
      return fn(Format<DType::f32>{});
    case DType::f16:
      return fn(Format<DType::f16>{});
    case DType::bf16:
      return fn(Format<DType::bf16>{});
    case DType::q4_0:
      return fn(Format<DType::q4_0>{});
    case DType::q4_1:
      return fn(Format<DType::q4_1>{});
    case DType::q5_0:
      return fn(Format<DType::q5_0>{});
    case DType::q5_1:
      return fn(Format<DType::q5_1>{});
    case DType::q8_0:
      return fn(Format<DType::q8_0>{});
    case DType::q2_k:
      return fn(Format<DType::q2_k>{});
    case DType::q3_k:
      return fn(Format<DType::q3_k>{});
    case DType::q4_k:
      return fn(Format<DType::q4_k>{});
    case DType::q5_k:
      return fn(Format<DType::q5_k>{});
    case DType::q6_k:
      return fn(Format<DType::q6_k>{});
    default:
      return;  // excluded by is_weight_dtype
  }
}

// A weight matrix without the inline helpers of TensorView, which must not be compiled with this file's flags.
struct Rows {
  const Byte* data;
  i64 row_bytes;
  i64 n;
  i64 k;
  const Byte* row(i64 i) const { return data + i * row_bytes; }
};
XGEN_INLINE Rows rows_of(const TensorView& w) {
  const DTypeInfo& info = dtype_info(w.dtype);
  const i64 k = w.shape.dims[static_cast<unsigned>(w.shape.rank - 1)];
  i64 n = 1;
  for (int i = 0; i + 1 < w.shape.rank; ++i) n *= w.shape.dims[static_cast<unsigned>(i)];
  return {w.data, k / info.block * info.block_bytes, n, k};
}

// The last, partial vector of a row of floats, zero padded: n in [1, 8].
XGEN_INLINE V load_padded(const float* p, i64 n) {
  if (n >= kLanes) return load(p);
  alignas(32) float padded[kLanes] = {};
  for (i64 i = 0; i < n; ++i) padded[i] = p[i];
  return load(padded);
}
XGEN_INLINE void store_part(float* p, V v, i64 n) {
  if (n >= kLanes) return store(p, v);
  alignas(32) float buffer[kLanes];
  store(buffer, v);
  for (i64 i = 0; i < n; ++i) p[i] = buffer[i];
}

void dequantise_row(const TensorView& weight, i64 row, float* out) {
  const Rows w = rows_of(weight);
  with_format(weight.dtype, [&]<class F>(F) {
    const Byte* p = w.row(row);
    const i64 blocks = w.k / 32;
    V v[4];
    for (i64 b = 0; b < blocks; ++b) {
      F::block(p, b, v);
      for (int j = 0; j < 4; ++j) store(out + b * 32 + j * kLanes, v[j]);
    }
    if (const int rest = static_cast<int>(w.k % 32); F::plain && rest > 0) {
      F::tail(p, blocks, rest, v);
      for (int j = 0; j * kLanes < rest; ++j) store_part(out + blocks * 32 + j * kLanes, v[j], rest - j * kLanes);
    }
  });
}

// --- Matrix products.

XGEN_INLINE void write_outputs(const Matmul& op, i64 row, i64 n, int count, const float* sums) {
  float* y = op.y + row * op.y_stride + n;
  for (int r = 0; r < count; ++r) {
    float value = sums[r];
    if (op.bias != nullptr) value += op.bias[n + r];
    if (op.accumulate) value += y[r];
    y[r] = value;
  }
}

// Few rows: R weight rows at a time are decoded in registers, straight from the mapped file, and meet M activation
// rows.
template <class F, int M, int R>
XGEN_INLINE void skinny_rows(const Matmul& op, const Rows& w, i64 m0, i64 n) {
  const Byte* p[R];
  for (int r = 0; r < R; ++r) p[r] = w.row(n + r);
  const float* x[M];
  for (int i = 0; i < M; ++i) x[i] = op.x + (m0 + i) * op.x_stride;
  V sum[R][M];
  for (int r = 0; r < R; ++r) {
    for (int i = 0; i < M; ++i) sum[r][i] = zero();
  }
  const i64 blocks = w.k / 32;
  for (i64 b = 0; b < blocks; ++b) {
    for (int r = 0; r < R; ++r) {
      V v[4];
      F::block(p[r], b, v);
      for (int j = 0; j < 4; ++j) {
        for (int i = 0; i < M; ++i) sum[r][i] = fma(v[j], load(x[i] + b * 32 + j * kLanes), sum[r][i]);
      }
    }
  }
  if (const int rest = static_cast<int>(w.k % 32); F::plain && rest > 0) {
    for (int r = 0; r < R; ++r) {
      V v[4];
      F::tail(p[r], blocks, rest, v);
      for (int j = 0; j * kLanes < rest; ++j) {
        for (int i = 0; i < M; ++i) {
          sum[r][i] = fma(v[j], load_padded(x[i] + blocks * 32 + j * kLanes, rest - j * kLanes), sum[r][i]);
        }
      }
    }
  }
  for (int i = 0; i < M; ++i) {
    float sums[R];
    for (int r = 0; r < R; ++r) sums[r] = hsum(sum[r][i]);
    write_outputs(op, m0 + i, n, R, sums);
  }
}

template <class F, int M>
void skinny(const Matmul& op, const Rows& w, i64 m0, i64 n0, i64 n1) {
  constexpr int kRows = M <= 2 ? 4 : 2;
  i64 n = n0;
  for (; n + kRows <= n1; n += kRows) skinny_rows<F, M, kRows>(op, w, m0, n);
  for (; n < n1; ++n) skinny_rows<F, M, 1>(op, w, m0, n);
}

// Packs `rows` (1..R) rows of floats, from element k0 on, as [vector][R][8], zero padded.
template <int R>
XGEN_INLINE void pack_rows(const float* x, i64 stride, i64 k, float* out) {
  for (int r = 0; r < R; ++r) {
    const float* row = x + r * stride;
    float* to = out + r * kLanes;
    i64 i = 0;
    for (; i + kLanes <= k; i += kLanes, to += R * kLanes) store(to, load(row + i));
    if (i < k) store(to, load_padded(row + i, k - i));
  }
}

// sums[r][w] += the products of R packed rows with 4 packed weight rows over `vectors` vectors; lane-wise, no hsum.
template <int R>
XGEN_INLINE void dot_tile(const float* weights, const float* rows, i64 vectors, bool first, float* sums) {
  V sum[R][4];
  for (int r = 0; r < R; ++r) {
    for (int n = 0; n < 4; ++n) sum[r][n] = first ? zero() : load(sums + (r * 4 + n) * kLanes);
  }
  for (i64 i = 0; i < vectors; ++i) {
    V x[R];
    for (int r = 0; r < R; ++r) x[r] = load(rows + r * kLanes);
    for (int n = 0; n < 4; ++n) {
      const V w = load(weights + n * kLanes);
      for (int r = 0; r < R; ++r) sum[r][n] = fma(w, x[r], sum[r][n]);
    }
    weights += 4 * kLanes;
    rows += R * kLanes;
  }
  for (int r = 0; r < R; ++r) {
    for (int n = 0; n < 4; ++n) store(sums + (r * 4 + n) * kLanes, sum[r][n]);
  }
}

// Rows in groups of three; the last group may have fewer. Calls fn(integral_constant-like group size, first row).
template <int N>
struct GroupSize {
  static constexpr int value = N;
};
template <class Fn>
XGEN_INLINE void for_groups_of_three(i64 rows, Fn&& fn) {
  i64 r = 0;
  for (; r + 3 <= rows; r += 3) fn(GroupSize<3>{}, r);
  if (rows - r == 2) fn(GroupSize<2>{}, r);
  if (rows - r == 1) fn(GroupSize<1>{}, r);
}

// Elements [k0, k0 + depth) of weight rows n..n+3 as [vector][4][8]; rows past the end are zero.
template <class F>
XGEN_INLINE void decode_four(const Rows& w, i64 n, i64 k0, i64 depth, float* out) {
  const i64 vectors = (depth + kLanes - 1) / kLanes;
  for (int r = 0; r < 4; ++r) {
    float* to = out + r * kLanes;
    if (n + r >= w.n) {
      for (i64 i = 0; i < vectors; ++i, to += 4 * kLanes) store(to, zero());
      continue;
    }
    const Byte* p = w.row(n + r);
    const i64 first = k0 / 32;
    V v[4];
    for (i64 b = 0; b < depth / 32; ++b, to += 16 * kLanes) {
      F::block(p, first + b, v);
      for (int j = 0; j < 4; ++j) store(to + j * 4 * kLanes, v[j]);
    }
    if (const int rest = static_cast<int>(depth % 32); F::plain && rest > 0) {
      F::tail(p, first + depth / 32, rest, v);
      for (int j = 0; j * kLanes < rest; ++j) store(to + j * 4 * kLanes, v[j]);
    }
  }
}

// Many rows: activations are packed once per block of rows and K, each four weight rows are decoded into L1 and meet
// all packed rows. Partial sums are kept lane by lane between the passes over K, so the order of additions is the same
// as in skinny_rows.
template <class F>
void wide(const Matmul& op, const Rows& w, i64 m0, i64 m1, i64 n0, i64 n1, Byte* scratch) {
  auto* packed = reinterpret_cast<float*>(scratch);
  float* four = packed + kMatmulPackedFloats;
  float* sums = four + 4 * kMatmulMaxDepth;
  const i64 chunks = (m1 - m0 + kMatmulRowsPerTile - 1) / kMatmulRowsPerTile;
  const i64 chunk = ((m1 - m0 + chunks - 1) / chunks + 2) / 3 * 3;
  const i64 max_depth = min_of(kMatmulMaxDepth, kMatmulPackedFloats / max_of(chunk, 1) / 32 * 32);
  const i64 passes = (w.k + max_depth - 1) / max_depth;
  const i64 pass_depth = ((w.k + passes - 1) / passes + 31) / 32 * 32;
  for (i64 mc = m0; mc < m1; mc += chunk) {
    const i64 rows = min_of(chunk, m1 - mc);
    for (i64 nc = n0; nc < n1; nc += kMatmulOutputsPerTile) {
      const i64 n_end = min_of(nc + kMatmulOutputsPerTile, n1);
      for (i64 k0 = 0; k0 < w.k; k0 += pass_depth) {
        const i64 depth = min_of(pass_depth, w.k - k0);
        const i64 vectors = (depth + kLanes - 1) / kLanes;
        if (passes > 1 || nc == n0) {
          for_groups_of_three(rows, [&]<int R>(GroupSize<R>, i64 r) {
            pack_rows<R>(op.x + (mc + r) * op.x_stride + k0, op.x_stride, depth, packed + r * vectors * kLanes);
          });
        }
        for (i64 n = nc; n < n_end; n += 4) {
          decode_four<F>(w, n, k0, depth, four);
          float* tile = sums + (n - nc) * rows * kLanes;
          for_groups_of_three(rows, [&]<int R>(GroupSize<R>, i64 r) {
            dot_tile<R>(four, packed + r * vectors * kLanes, vectors, k0 == 0, tile + r * 4 * kLanes);
          });
        }
      }
      for (i64 n = nc; n < n_end; n += 4) {
        const float* tile = sums + (n - nc) * rows * kLanes;
        for (i64 r = 0; r < rows; ++r) {
          float result[4];
          hsum4(tile + r * 4 * kLanes, result);
          write_outputs(op, mc + r, n, static_cast<int>(min_of(4, n_end - n)), result);
        }
      }
    }
  }
}

void matmul(const Matmul& op, i64 m0, i64 m1, i64 n0, i64 n1, Byte* scratch) {
  const Rows w = rows_of(op.weight);
  with_format(op.weight.dtype, [&]<class F>(F) {
    switch (m1 - m0) {
      case 0:
        return;
      case 1:
        return skinny<F, 1>(op, w, m0, n0, n1);
      case 2:
        return skinny<F, 2>(op, w, m0, n0, n1);
      case 3:
        return skinny<F, 3>(op, w, m0, n0, n1);
      case 4:
        return skinny<F, 4>(op, w, m0, n0, n1);
      default:
        return wide<F>(op, w, m0, m1, n0, n1, scratch);
    }
  });
}

// --- Functions.

// e^x within about one unit in the last place; 0 below -104, infinity above 88.73, NaN stays NaN. Cody-Waite reduction
// and the minimax polynomial of Cephes' expf (Moshier).
XGEN_INLINE V exp_v(V x) {
  x = min(set1(89.0f), max(set1(-105.0f), x));
  const V magic = set1(12582912.0f);  // 1.5 * 2^23: adding it rounds to the nearest integer
  const V n = sub(fma(x, set1(1.44269504088896341f), magic), magic);
  V r = fma(n, set1(-0.693359375f), x);
  r = fma(n, set1(2.12194440e-4f), r);
  V p = set1(1.9875691500e-4f);
  p = fma(p, r, set1(1.3981999507e-3f));
  p = fma(p, r, set1(8.3334519073e-3f));
  p = fma(p, r, set1(4.1665795894e-2f));
  p = fma(p, r, set1(1.6666665459e-1f));
  p = fma(p, r, set1(5.0000001201e-1f));
  p = add(fma(p, mul(r, r), r), set1(1.0f));
  // 2^n in two factors, so that the ends of the range neither overflow nor flush too early.
  const V half = sub(fma(n, set1(0.5f), magic), magic);
  return mul(mul(p, pow2(half)), pow2(sub(n, half)));
}

XGEN_INLINE float exp_one(float x) { return hmax(exp_v(set1(x))); }

XGEN_INLINE V sigmoid_times(V x, V argument) { return div(x, add(set1(1.0f), exp_v(sub(zero(), argument)))); }

// Cephes' tanhf: a polynomial near zero, 1 - 2 / (e^2x + 1) elsewhere.
XGEN_INLINE V tanh_v(V x) {
  const V z = mul(x, x);
  V p = set1(-5.70498872745e-3f);
  p = fma(p, z, set1(2.06390887954e-2f));
  p = fma(p, z, set1(-5.37397155531e-2f));
  p = fma(p, z, set1(1.33314422036e-1f));
  p = fma(p, z, set1(-3.33332819422e-1f));
  const V near = fma(mul(p, z), x, x);
  const V far = sub(set1(1.0f), div(set1(2.0f), add(exp_v(add(x, x)), set1(1.0f))));
  return select_less(z, set1(0.390625f), near, far);
}

// x * Phi(x) through a rational approximation of erfc with relative error below 1.2e-7 (Numerical Recipes, 6.2).
XGEN_INLINE V gelu_erf_v(V x) {
  const V z = mul(max(x, sub(zero(), x)), set1(0.70710678118654752f));
  const V t = div(set1(1.0f), fma(set1(0.5f), z, set1(1.0f)));
  V p = set1(0.17087277f);
  p = fma(p, t, set1(-0.82215223f));
  p = fma(p, t, set1(1.48851587f));
  p = fma(p, t, set1(-1.13520398f));
  p = fma(p, t, set1(0.27886807f));
  p = fma(p, t, set1(-0.18628806f));
  p = fma(p, t, set1(0.09678418f));
  p = fma(p, t, set1(0.37409196f));
  p = fma(p, t, set1(1.00002368f));
  p = fma(p, t, set1(-1.26551223f));
  const V erfc = mul(t, exp_v(sub(p, mul(z, z))));
  const V twice_phi = select_less(x, zero(), erfc, sub(set1(2.0f), erfc));
  return mul(mul(set1(0.5f), x), twice_phi);
}

XGEN_INLINE V gelu_tanh_v(V x) {  // 0.5 x (1 + tanh u) = x sigmoid(2 u)
  const V u2 = mul(mul(x, set1(1.5957691216057308f)), fma(mul(x, x), set1(0.044715f), set1(1.0f)));
  return sigmoid_times(x, u2);
}

// --- Row-wise ops. map_row applies fn to vectors; the tail is a zero-padded vector.

template <class Fn>
XGEN_INLINE void map_row(i64 n, Fn&& fn) {
  i64 i = 0;
  for (; i + kLanes <= n; i += kLanes) fn(i, i64{kLanes});
  if (i < n) fn(i, n - i);
}

// Sum of fn(vector) over a row in a fixed order: four interleaved accumulators.
template <class Fn>
XGEN_INLINE float sum_row(const float* x, i64 n, Fn&& fn) {
  V sum[4] = {zero(), zero(), zero(), zero()};
  i64 i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    for (int j = 0; j < 4; ++j) sum[j] = fn(load(x + i + j * kLanes), sum[j], i64{kLanes});
  }
  for (int j = 0; i < n; i += kLanes, ++j) sum[j] = fn(load_padded(x + i, n - i), sum[j], min_of(kLanes, n - i));
  return hsum(add(add(sum[0], sum[1]), add(sum[2], sum[3])));
}

void rms_norm(const float* x, i64 x_stride, const float* weight, float eps, i64 m, i64 n, float* out, i64 out_stride) {
  for (i64 r = 0; r < m; ++r, x += x_stride, out += out_stride) {
    const float squares = sum_row(x, n, [](V v, V sum, i64) { return fma(v, v, sum); });
    const V inverse = set1(1.0f / __builtin_sqrtf(squares / static_cast<float>(n) + eps));
    map_row(n, [&](i64 i, i64 count) {
      V v = mul(load_padded(x + i, count), inverse);
      if (weight != nullptr) v = mul(v, load_padded(weight + i, count));
      store_part(out + i, v, count);
    });
  }
}

void layer_norm(const float* x, i64 x_stride, const float* weight, const float* bias, float eps, i64 m, i64 n,
                float* out, i64 out_stride) {
  for (i64 r = 0; r < m; ++r, x += x_stride, out += out_stride) {
    const float total = sum_row(x, n, [](V v, V sum, i64) { return add(v, sum); });
    const V mean = set1(total / static_cast<float>(n));
    const float squares = sum_row(x, n, [&](V v, V sum, i64 count) {
      V d = sub(v, mean);
      if (count < kLanes) d = keep_first(d, count);  // the padding is not part of the row
      return fma(d, d, sum);
    });
    const V inverse = set1(1.0f / __builtin_sqrtf(squares / static_cast<float>(n) + eps));
    map_row(n, [&](i64 i, i64 count) {
      V v = mul(sub(load_padded(x + i, count), mean), inverse);
      if (weight != nullptr) v = mul(v, load_padded(weight + i, count));
      if (bias != nullptr) v = add(v, load_padded(bias + i, count));
      store_part(out + i, v, count);
    });
  }
}

void rope(const Rope& op, i64 m0, i64 m1) {
  const i64 half = op.rotary_dim / 2;
  for (i64 r = m0; r < m1; ++r) {
    const i64 table_row = op.positions != nullptr ? op.positions[r] : r;
    const float* cos = op.cos + table_row * half;
    const float* sin = op.sin + table_row * half;
    for (int h = 0; h < op.heads; ++h) {
      float* x = op.x + r * op.stride + i64{h} * op.head_dim;
      if (op.interleaved) {
        for (i64 i = 0; i < half; ++i) {
          const float a = x[2 * i];
          const float b = x[2 * i + 1];
          x[2 * i] = a * cos[i] - b * sin[i];
          x[2 * i + 1] = b * cos[i] + a * sin[i];
        }
      } else {
        map_row(half, [&](i64 i, i64 count) {
          const V a = load_padded(x + i, count);
          const V b = load_padded(x + half + i, count);
          const V c = load_padded(cos + i, count);
          const V s = load_padded(sin + i, count);
          store_part(x + i, sub(mul(a, c), mul(b, s)), count);
          store_part(x + half + i, add(mul(b, c), mul(a, s)), count);
        });
      }
    }
  }
}

template <class Fn>
XGEN_INLINE void gated_rows(const float* gate, i64 gate_stride, const float* up, i64 up_stride, i64 m, i64 n,
                            float* out, i64 out_stride, Fn&& activation) {
  for (i64 r = 0; r < m; ++r) {
    const float* g = gate + r * gate_stride;
    const float* u = up == nullptr ? nullptr : up + r * up_stride;
    float* o = out + r * out_stride;
    map_row(n, [&](i64 i, i64 count) {
      V v = activation(load_padded(g + i, count));
      if (u != nullptr) v = mul(v, load_padded(u + i, count));
      store_part(o + i, v, count);
    });
  }
}
void gated(GatedActivation activation, const float* gate, i64 gate_stride, const float* up, i64 up_stride, i64 m, i64 n,
           float* out, i64 out_stride) {
  switch (activation) {
    case GatedActivation::silu:
      return gated_rows(gate, gate_stride, up, up_stride, m, n, out, out_stride,
                        [](V v) { return sigmoid_times(v, v); });
    case GatedActivation::gelu_tanh:
      return gated_rows(gate, gate_stride, up, up_stride, m, n, out, out_stride, [](V v) { return gelu_tanh_v(v); });
    case GatedActivation::gelu_erf:
      return gated_rows(gate, gate_stride, up, up_stride, m, n, out, out_stride, [](V v) { return gelu_erf_v(v); });
  }
}

void add_rows(const float* a, i64 a_stride, const float* b, i64 b_stride, i64 m, i64 n, float* out, i64 out_stride) {
  for (i64 r = 0; r < m; ++r, a += a_stride, b += b_stride, out += out_stride) {
    map_row(n, [&](i64 i, i64 count) {
      store_part(out + i, add(load_padded(a + i, count), load_padded(b + i, count)), count);
    });
  }
}

void scale_rows(float factor, i64 m, i64 n, float* x, i64 stride) {
  for (i64 r = 0; r < m; ++r, x += stride) {
    map_row(n, [&](i64 i, i64 count) { store_part(x + i, mul(load_padded(x + i, count), set1(factor)), count); });
  }
}

XGEN_INLINE V softcap_v(V x, V cap, V inverse) { return mul(cap, tanh_v(mul(x, inverse))); }

void softcap_rows(float cap, i64 m, i64 n, float* x, i64 stride) {
  const V c = set1(cap);
  const V inverse = set1(1.0f / cap);
  for (i64 r = 0; r < m; ++r, x += stride) {
    map_row(n, [&](i64 i, i64 count) { store_part(x + i, softcap_v(load_padded(x + i, count), c, inverse), count); });
  }
}

// --- Over logits.

float max_row(const float* x, i64 n) {
  V best = set1(-__builtin_inff());
  i64 i = 0;
  for (; i + kLanes <= n; i += kLanes) best = max(load(x + i), best);  // max(NaN, b) is b
  float result = hmax(best);
  for (; i < n; ++i) result = x[i] > result ? x[i] : result;
  return result;
}

i64 argmax_row(const float* x, i64 n) {
  const float best = max_row(x, n);
  for (i64 i = 0; i < n; ++i) {
    if (x[i] == best) return i;
  }
  return 0;  // all NaN
}

void exp_row(const float* x, float shift, i64 n, float* out) {
  const V s = set1(shift);
  map_row(n, [&](i64 i, i64 count) { store_part(out + i, exp_v(sub(load_padded(x + i, count), s)), count); });
}

double logsumexp_row(const float* x, i64 n) {
  const float top = max_row(x, n);
  if (!(top > -__builtin_inff()) || top == __builtin_inff()) return static_cast<double>(top);
  const V s = set1(top);
  double total = 0;
  // Floats within a chunk, doubles between chunks: a vocabulary is long.
  constexpr i64 kChunk = 1024;
  for (i64 begin = 0; begin < n; begin += kChunk) {
    total += static_cast<double>(sum_row(x + begin, min_of(kChunk, n - begin), [&](V v, V sum, i64 count) {
      V e = exp_v(sub(v, s));
      if (count < kLanes) e = keep_first(e, count);
      return add(e, sum);
    }));
  }
  return static_cast<double>(top) + __builtin_log(total);
}

// --- Attention.

XGEN_INLINE i64 padded_dim(i64 head_dim) { return (head_dim + kLanes - 1) / kLanes * kLanes; }

template <class F>
XGEN_INLINE void convert_key(const Byte* from, i64 head_dim, float* to, i64 to_vector_stride) {
  i64 i = 0;
  for (; i + kLanes <= head_dim; i += kLanes, to += to_vector_stride) store(to, F::load(from + i * F::size));
  if (i < head_dim) {
    alignas(32) Byte last[kLanes * 4] = {};
    __builtin_memcpy(last, from + i * F::size, static_cast<std::size_t>((head_dim - i) * F::size));
    store(to, F::load(last));
  }
}

// Keys and values of positions [begin, end) of the partition at `base` as F32: keys in groups of four as
// [group][vector][4][8] for dot_tile, values as [position][padded head_dim].
template <class F>
void gather_partition(const KvCache& cache, const std::int32_t* blocks, int kv_head, i64 base, i64 begin, i64 end,
                      float* keys, float* values) {
  const i64 hd = cache.head_dim;
  const i64 padded = padded_dim(hd);
  for (i64 pos = begin; pos < end; ++pos) {
    const i64 block = blocks[pos / cache.block_size];
    const i64 index = ((block * cache.kv_heads + kv_head) * cache.block_size + pos % cache.block_size) * hd * F::size;
    const i64 j = pos - base;
    convert_key<F>(cache.k + index, hd, keys + (j / 4 * padded * 4) + j % 4 * kLanes, 4 * kLanes);
    convert_key<F>(cache.v + index, hd, values + j * padded, kLanes);
  }
}

// out[r] += sum over keys j in [lo, hi), ascending, of p[r][j] * v[j], for R rows and C vectors of the head.
template <int R, int C>
XGEN_INLINE void weighted_sum(const float* p, const float* v, i64 lo, i64 hi, i64 padded, float* out) {
  V sum[R][C];
  for (int r = 0; r < R; ++r) {
    for (int c = 0; c < C; ++c) sum[r][c] = load(out + r * padded + c * kLanes);
  }
  for (i64 j = lo; j < hi; ++j) {
    V value[C];
    for (int c = 0; c < C; ++c) value[c] = load(v + j * padded + c * kLanes);
    for (int r = 0; r < R; ++r) {
      const V weight = set1(p[r * kAttentionPartition + j]);
      for (int c = 0; c < C; ++c) sum[r][c] = fma(weight, value[c], sum[r][c]);
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int c = 0; c < C; ++c) store(out + r * padded + c * kLanes, sum[r][c]);
  }
}
template <int R>
XGEN_INLINE void weighted_sum_head(const float* p, const float* v, i64 lo, i64 hi, i64 padded, float* out) {
  i64 d = 0;
  for (; d + 4 * kLanes <= padded; d += 4 * kLanes) weighted_sum<R, 4>(p, v + d, lo, hi, padded, out + d);
  for (; d < padded; d += kLanes) weighted_sum<R, 1>(p, v + d, lo, hi, padded, out + d);
}

// Query rows [first, last) of the flattened (position, grouped head) rows of a tile, at most kAttentionRows of them.
void attention_rows(const Attention& op, const AttentionSequence& sequence, int kv_head, i64 row0, i64 first, i64 last,
                    Byte* scratch) {
  const KvCache& cache = op.cache;
  const i64 hd = cache.head_dim;
  const i64 padded = padded_dim(hd);
  const i64 vectors = padded / kLanes;
  const i64 group = op.heads / cache.kv_heads;
  const i64 rows = last - first;

  auto* queries = reinterpret_cast<float*>(scratch);
  float* keys = queries + kAttentionRows * padded;
  float* values = keys + kAttentionPartition * padded;
  float* outs = values + kAttentionPartition * padded;
  float* scores = outs + kAttentionRows * padded;
  float* tops = scores + kAttentionRows * kAttentionPartition;
  float* totals = tops + kAttentionRows;

  const auto position = [&](i64 r) { return sequence.first_pos + row0 + (first + r) / group; };
  const auto offset = [&](i64 r, i64 stride) {
    return (sequence.first_row + row0 + (first + r) / group) * stride + (kv_head * group + (first + r) % group) * hd;
  };
  const auto lowest_key = [&](i64 pos) { return op.window > 0 ? max_of(0, pos - op.window + 1) : i64{0}; };

  for_groups_of_three(rows, [&]<int R>(GroupSize<R>, i64 r) {
    for (int i = 0; i < R; ++i) {
      const float* q = op.q + offset(r + i, op.q_stride);
      float* to = queries + r * padded + i * kLanes;
      for (i64 d = 0; d < hd; d += kLanes, to += R * kLanes) store(to, load_padded(q + d, hd - d));
    }
  });
  for (i64 i = 0; i < rows * padded; i += kLanes) store(outs + i, zero());
  for (i64 r = 0; r < rows; ++r) {
    tops[r] = -__builtin_inff();
    totals[r] = 0;
  }

  const V cap = set1(op.softcap);
  const V inverse_cap = set1(op.softcap > 0 ? 1.0f / op.softcap : 0.0f);
  const V factor = set1(op.scale);
  const i64 begin = lowest_key(position(0));
  const i64 end = position(rows - 1) + 1;
  for (i64 base = begin / kAttentionPartition * kAttentionPartition; base < end; base += kAttentionPartition) {
    const i64 key_end = min_of(end - base, kAttentionPartition);
    const i64 key_begin = max_of(begin - base, 0);
    switch (cache.dtype) {
      case DType::f16:
        gather_partition<Format<DType::f16>>(cache, sequence.blocks, kv_head, base, base + key_begin, base + key_end,
                                             keys, values);
        break;
      case DType::bf16:
        gather_partition<Format<DType::bf16>>(cache, sequence.blocks, kv_head, base, base + key_begin, base + key_end,
                                              keys, values);
        break;
      default:
        gather_partition<Format<DType::f32>>(cache, sequence.blocks, kv_head, base, base + key_begin, base + key_end,
                                             keys, values);
    }

    // Scores of all rows against the gathered keys; those a row may not see are ignored below.
    for_groups_of_three(rows, [&]<int R>(GroupSize<R>, i64 r) {
      for (i64 j = key_begin / 4 * 4; j < key_end; j += 4) {
        alignas(32) float sums[R * 4 * kLanes];
        dot_tile<R>(keys + j * padded, queries + r * padded, vectors, true, sums);
        for (int i = 0; i < R; ++i) hsum4(sums + i * 4 * kLanes, scores + (r + i) * kAttentionPartition + j);
      }
    });

    // Online softmax, row by row: a row's numbers depend on its own visible keys [lo, hi) alone.
    const auto visible = [&](i64 r, i64& lo, i64& hi) {
      const i64 pos = position(r);
      lo = max_of(lowest_key(pos) - base, 0);
      hi = min_of(pos + 1 - base, kAttentionPartition);
      return lo < hi;
    };
    for (i64 r = 0; r < rows; ++r) {
      i64 lo;
      i64 hi;
      if (!visible(r, lo, hi)) continue;
      float* s = scores + r * kAttentionPartition;
      const float none = -__builtin_inff();
      for (i64 j = 0; j < lo; ++j) s[j] = none;
      for (i64 j = hi; j < kAttentionPartition; ++j) s[j] = none;
      V best = set1(none);
      for (i64 j = 0; j < kAttentionPartition; j += kLanes) {
        V v = mul(load(s + j), factor);
        if (op.softcap > 0) {
          // tanh would lift the masked -infinity to -cap.
          v = select_less(set1(none), v, softcap_v(v, cap, inverse_cap), set1(none));
        }
        // A negative scale would turn the mask around; the models have none.
        store(s + j, v);
        best = max(v, best);
      }
      const float top = hmax(best) > tops[r] ? hmax(best) : tops[r];
      const float correction = exp_one(tops[r] - top);
      V total = zero();
      for (i64 j = 0; j < kAttentionPartition; j += kLanes) {
        const V e = exp_v(sub(load(s + j), set1(top)));
        store(s + j, e);
        total = add(total, e);
      }
      totals[r] = totals[r] * correction + hsum(total);
      tops[r] = top;
      const V c = set1(correction);
      float* o = outs + r * padded;
      for (i64 d = 0; d < padded; d += kLanes) store(o + d, mul(load(o + d), c));
    }

    for_groups_of_three(rows, [&]<int R>(GroupSize<R>, i64 r) {
      i64 lo[R];
      i64 hi[R];
      bool whole = true;
      bool seen[R];
      for (int i = 0; i < R; ++i) {
        seen[i] = visible(r + i, lo[i], hi[i]);
        whole = whole && seen[i] && lo[i] == lo[0] && hi[i] == hi[0];
      }
      if (whole) {
        weighted_sum_head<R>(scores + r * kAttentionPartition, values, lo[0], hi[0], padded, outs + r * padded);
        return;
      }
      for (int i = 0; i < R; ++i) {
        if (!seen[i]) continue;
        weighted_sum_head<1>(scores + (r + i) * kAttentionPartition, values, lo[i], hi[i], padded,
                             outs + (r + i) * padded);
      }
    });
  }

  for (i64 r = 0; r < rows; ++r) {
    const V total = set1(totals[r]);
    float* out = op.out + offset(r, op.out_stride);
    for (i64 d = 0; d < hd; d += kLanes) store_part(out + d, div(load(outs + r * padded + d), total), hd - d);
  }
}

void attention(const Attention& op, const AttentionSequence& sequence, int kv_head, i64 row0, i64 row1, Byte* scratch) {
  const i64 rows = (row1 - row0) * (op.heads / op.cache.kv_heads);
  for (i64 first = 0; first < rows; first += kAttentionRows) {
    attention_rows(op, sequence, kv_head, row0, first, min_of(first + kAttentionRows, rows), scratch);
  }
}

XGEN_INLINE void store_cache(DType type, Byte* to, const float* from, i64 n) {
  if (type == DType::f32) {
    __builtin_memcpy(to, from, static_cast<std::size_t>(n) * sizeof(float));
    return;
  }
  map_row(n, [&](i64 i, i64 count) {
    const V v = load_padded(from + i, count);
    alignas(16) std::uint16_t bits[kLanes];
    if (type == DType::f16) {
      store_f16(bits, v);
    } else {
      store_bf16(bits, v);
    }
    __builtin_memcpy(to + i * 2, bits, static_cast<std::size_t>(count) * 2);
  });
}

void kv_write(const KvCache& cache, const float* k, i64 k_stride, const float* v, i64 v_stride, const i64* slots,
              i64 m) {
  const i64 hd = cache.head_dim;
  const i64 size = cache.dtype == DType::f32 ? 4 : 2;
  for (i64 r = 0; r < m; ++r) {
    if (slots[r] < 0) continue;
    const i64 block = slots[r] / cache.block_size;
    const i64 offset = slots[r] % cache.block_size;
    for (i64 h = 0; h < cache.kv_heads; ++h) {
      const i64 index = ((block * cache.kv_heads + h) * cache.block_size + offset) * hd * size;
      store_cache(cache.dtype, cache.k + index, k + r * k_stride + h * hd, hd);
      store_cache(cache.dtype, cache.v + index, v + r * v_stride + h * hd, hd);
    }
  }
}

}  // namespace
}  // namespace xgen::kernels::cpu

// Fills in a table with the functions above.
#define XGEN_KERNEL_TABLE(table_name, features)                                                                     \
  {                                                                                                                 \
    .name = table_name, .required_features = features, .matmul = matmul, .dequantise_row = dequantise_row,          \
    .rms_norm = rms_norm, .layer_norm = layer_norm, .rope = rope, .gated = gated, .add = add_rows,                  \
    .scale = scale_rows, .softcap = softcap_rows, .argmax = argmax_row, .max = max_row, .logsumexp = logsumexp_row, \
    .exp = exp_row, .attention = attention, .kv_write = kv_write,                                                   \
  }
