// The kernels, written once over vectors of eight floats. An instruction set's file defines, in an unnamed namespace,
// the vector types V (8 floats) and B16 (16 bytes) with the functions used below, and then includes this file, which
// goes into the same unnamed namespace: nothing compiled with special flags may be visible to other files.
//
// Canonical order of a dot product over K (integer_products.h has another for its formats): lane j of one vector
// accumulates the elements k = j (mod 8) in ascending order with fma(w, x, sum), padded with zeros to whole vectors;
// then hsum() adds the lanes in a fixed tree. Every path below computes exactly that.
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

// --- Weight formats. A row is a sequence of units of kBytes that hold kParts times 32 elements; Unit reads a unit's
// scales once, part<S> gives its elements [32 S, 32 S + 32) as F32. ggml's block layouts:
// https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h. All products below are exact in F32 except Q6_K's
// last one, so the results equal the reference's whatever the rounding of its steps.

template <DType>
struct Format;

template <class F, int Size>
struct PlainFormat {
  static constexpr bool plain = true;
  static constexpr bool integer = false;
  static constexpr int size = Size;
  static constexpr int kParts = 1;
  static constexpr int kBytes = 32 * Size;
  struct Unit {
    const Byte* p;
    template <int>
    XGEN_INLINE void part(V (&out)[4]) const {
      for (int j = 0; j < 4; ++j) out[j] = F::load(p + j * kLanes * Size);
    }
  };
  // The last n < 32 elements at p; vectors beyond them are zero.
  XGEN_INLINE static void tail(const Byte* p, int n, V (&out)[4]) {
    alignas(32) Byte padded[32 * Size] = {};
    __builtin_memcpy(padded, p, static_cast<std::size_t>(n) * Size);
    for (int j = 0; j < 4; ++j) out[j] = F::load(padded + j * kLanes * Size);
  }
};
template <>
struct Format<DType::f32> : PlainFormat<Format<DType::f32>, 4> {
  XGEN_INLINE static V load(const Byte* p) { return load_f32(p); }
};
template <>
struct Format<DType::f16> : PlainFormat<Format<DType::f16>, 2> {
  XGEN_INLINE static V load(const Byte* p) { return load_f16(p); }
};
template <>
struct Format<DType::bf16> : PlainFormat<Format<DType::bf16>, 2> {
  XGEN_INLINE static V load(const Byte* p) { return load_bf16(p); }
};

template <int Bytes, int Parts>
struct BlockFormat {
  static constexpr bool plain = false;
  static constexpr bool integer = false;
  static constexpr int kParts = Parts;
  static constexpr int kBytes = Bytes;
  XGEN_INLINE static void tail(const Byte*, int, V (&)[4]) {}  // a row is whole units
};

// to_float() gives bytes times 1 / kByteScale, a power of two, which the scales take back without rounding.
XGEN_INLINE V byte_scale_at(const Byte* half) { return mul(set1_half(half), set1(kByteScale)); }

// out = q * d for 32 signed bytes; d includes kByteScale.
XGEN_INLINE void scaled(B16 lo, B16 hi, V d, V (&out)[4]) {
  to_float(lo, out[0], out[1]);
  to_float(hi, out[2], out[3]);
  for (V& v : out) v = mul(v, d);
}
// out = q * d + m. With m = -n d it is (q - n) d, exactly, while q d is exact.
XGEN_INLINE void scaled(B16 lo, B16 hi, V d, V m, V (&out)[4]) {
  to_float(lo, out[0], out[1]);
  to_float(hi, out[2], out[3]);
  for (V& v : out) v = fma(v, d, m);
}
// Two halves of 16 with a scale each.
XGEN_INLINE void scaled_halves(B16 lo, B16 hi, V d0, V d1, V (&out)[4]) {
  to_float(lo, out[0], out[1]);
  to_float(hi, out[2], out[3]);
  out[0] = mul(out[0], d0);
  out[1] = mul(out[1], d0);
  out[2] = mul(out[2], d1);
  out[3] = mul(out[3], d1);
}

// Blocks of d and 32 integers: F::integers() gives the elements [0, 16) and [16, 32) as signed bytes. Their products
// are computed with integers (integer_products.h).
template <class F, int Bytes>
struct IntegerFormat : BlockFormat<Bytes, 1> {
  static constexpr bool integer = true;
  struct Unit {
    const Byte* p;
    template <int>
    XGEN_INLINE void part(V (&out)[4]) const {
      B16 q[2];
      F::integers(p, q);
      scaled(q[0], q[1], byte_scale_at(p), out);
    }
  };
};

// Bits [2 j, 2 j + 2) of every byte, and the lower (0) or upper (1) nibble of every byte.
XGEN_INLINE B16 two_bits(B16 q, int j) { return low_bits<3>(shift_right_lanes(q, 2 * j)); }
XGEN_INLINE B16 nibble(B16 q, int half) { return low_bits<15>(shift_right_lanes(q, 4 * half)); }

template <>
struct Format<DType::q8_0> : IntegerFormat<Format<DType::q8_0>, 34> {  // d, qs[32]
  XGEN_INLINE static void integers(const Byte* p, B16 (&out)[2]) {
    out[0] = load16(p + 2);
    out[1] = load16(p + 18);
  }
};
template <>
struct Format<DType::q4_0> : IntegerFormat<Format<DType::q4_0>, 18> {  // d, qs[16]
  XGEN_INLINE static void integers(const Byte* p, B16 (&out)[2]) {
    const B16 q = load16(p + 2);
    out[0] = subtract(nibble(q, 0), 8);
    out[1] = subtract(nibble(q, 1), 8);
  }
};
template <>
struct Format<DType::q4_1> : BlockFormat<20, 1> {  // d, m, qs[16]
  struct Unit {
    const Byte* p;
    template <int>
    XGEN_INLINE void part(V (&out)[4]) const {
      const B16 q = load16(p + 4);
      scaled(nibble(q, 0), nibble(q, 1), byte_scale_at(p), set1_half(p + 2), out);
    }
  };
};
// Sixteen nibbles with their fifth bits.
XGEN_INLINE B16 five_bits(B16 q, int half, std::uint32_t high) {
  return combine(nibble(q, half), spread_bits<16>(high >> (16 * half) & 0xffff));
}
template <>
struct Format<DType::q5_0> : IntegerFormat<Format<DType::q5_0>, 22> {  // d, qh, qs[16]
  XGEN_INLINE static void integers(const Byte* p, B16 (&out)[2]) {
    const auto high = read<std::uint32_t>(p + 2);
    const B16 q = load16(p + 6);
    out[0] = subtract(five_bits(q, 0, high), 16);
    out[1] = subtract(five_bits(q, 1, high), 16);
  }
};
template <>
struct Format<DType::q5_1> : BlockFormat<24, 1> {  // d, m, qh, qs[16]
  struct Unit {
    const Byte* p;
    template <int>
    XGEN_INLINE void part(V (&out)[4]) const {
      const auto high = read<std::uint32_t>(p + 4);
      const B16 q = load16(p + 8);
      scaled(five_bits(q, 0, high), five_bits(q, 1, high), byte_scale_at(p), set1_half(p + 2), out);
    }
  };
};

// out[i] = bytes[i] * factor for 16 signed bytes.
XGEN_INLINE void scales16(B16 bytes, float factor, float* out) {
  V lo;
  V hi;
  to_float(bytes, lo, hi);
  const V f = set1(factor * kByteScale);
  store(out, mul(lo, f));
  store(out + kLanes, mul(hi, f));
}

template <>
struct Format<DType::q2_k> : BlockFormat<84, 8> {  // scales[16], qs[64], d, dmin
  struct Unit {
    const Byte* p;
    alignas(32) float scale[16];
    alignas(32) float minimum[16];
    XGEN_INLINE explicit Unit(const Byte* unit) : p(unit) {
      const B16 both = load16(p);
      scales16(nibble(both, 0), read_half(p + 80) * kByteScale, scale);
      scales16(nibble(both, 1), -read_half(p + 82), minimum);
    }
    template <int S>
    XGEN_INLINE void part(V (&out)[4]) const {
      const Byte* q = p + 16 + S / 4 * 32;
      to_float(two_bits(load16(q), S % 4), out[0], out[1]);
      to_float(two_bits(load16(q + 16), S % 4), out[2], out[3]);
      for (int j = 0; j < 4; ++j) out[j] = fma(out[j], set1(scale[2 * S + j / 2]), set1(minimum[2 * S + j / 2]));
    }
  };
};

// Q3_K's sixteen scales, 32 added to each: four low bits of them in 8 bytes, then their two high bits in 4 bytes.
XGEN_INLINE void q3_scale_bytes(const Byte* p, Byte (&out)[16]) {
  const auto a = read<std::uint32_t>(p + 96);
  const auto b = read<std::uint32_t>(p + 100);
  const auto high = read<std::uint32_t>(p + 104);
  constexpr std::uint32_t k4 = 0x0f0f0f0f;
  constexpr std::uint32_t k2 = 0x03030303;
  const std::uint32_t bytes[4] = {(a & k4) | (high & k2) << 4, (b & k4) | (high >> 2 & k2) << 4,
                                  (a >> 4 & k4) | (high >> 4 & k2) << 4, (b >> 4 & k4) | (high >> 6 & k2) << 4};
  __builtin_memcpy(out, bytes, 16);
}

template <>
struct Format<DType::q3_k> : BlockFormat<110, 8> {  // hmask[32], qs[64], scales[12], d
  struct Unit {
    const Byte* p;
    alignas(32) float scale[16];
    XGEN_INLINE explicit Unit(const Byte* unit) : p(unit) {
      Byte bytes[16];
      q3_scale_bytes(p, bytes);
      scales16(subtract(load16(bytes), 32), read_half(p + 108) * kByteScale, scale);
    }
    template <int S>
    XGEN_INLINE void part(V (&out)[4]) const {
      const Byte* q = p + 32 + S / 4 * 32;
      // The high bit stands for +4, and 4 is subtracted from all.
      const B16 lo = combine(two_bits(load16(q), S % 4), bit_as<4>(load16(p), S));
      const B16 hi = combine(two_bits(load16(q + 16), S % 4), bit_as<4>(load16(p + 16), S));
      scaled_halves(subtract(lo, 4), subtract(hi, 4), set1(scale[2 * S]), set1(scale[2 * S + 1]), out);
    }
  };
};

// The eight 6-bit scales and then the minimums of Q4_K and Q5_K (d, dmin, packed[12]) as bytes.
XGEN_INLINE void q45_scale_bytes(const Byte* p, Byte (&out)[16]) {
  const auto a = read<std::uint32_t>(p + 4);
  const auto b = read<std::uint32_t>(p + 8);
  const auto c = read<std::uint32_t>(p + 12);
  constexpr std::uint32_t k6 = 0x3f3f3f3f;
  constexpr std::uint32_t k4 = 0x0f0f0f0f;
  constexpr std::uint32_t k2 = 0x03030303;
  const std::uint32_t bytes[4] = {a & k6, (c & k4) | (a >> 6 & k2) << 4, b & k6, (c >> 4 & k4) | (b >> 6 & k2) << 4};
  __builtin_memcpy(out, bytes, 16);
}
// The same times d and -dmin.
XGEN_INLINE void scales_and_minimums(const Byte* p, float* out) {
  Byte bytes[16];
  q45_scale_bytes(p, bytes);
  V scale;
  V minimum;
  to_float(load16(bytes), scale, minimum);
  store(out, mul(scale, set1(read_half(p) * kByteScale * kByteScale)));
  store(out + kLanes, mul(minimum, set1(-read_half(p + 2) * kByteScale)));
}

template <>
struct Format<DType::q4_k> : BlockFormat<144, 8> {  // d, dmin, scales[12], qs[128]
  struct Unit {
    const Byte* p;
    alignas(32) float scale[16];
    XGEN_INLINE explicit Unit(const Byte* unit) : p(unit) { scales_and_minimums(p, scale); }
    template <int S>
    XGEN_INLINE void part(V (&out)[4]) const {
      const Byte* q = p + 16 + S / 2 * 32;
      scaled(nibble(load16(q), S % 2), nibble(load16(q + 16), S % 2), set1(scale[S]), set1(scale[8 + S]), out);
    }
  };
};
template <>
struct Format<DType::q5_k> : BlockFormat<176, 8> {  // d, dmin, scales[12], qh[32], qs[128]
  struct Unit {
    const Byte* p;
    alignas(32) float scale[16];
    XGEN_INLINE explicit Unit(const Byte* unit) : p(unit) { scales_and_minimums(p, scale); }
    template <int S>
    XGEN_INLINE void part(V (&out)[4]) const {
      const Byte* q = p + 48 + S / 2 * 32;
      const B16 lo = combine(nibble(load16(q), S % 2), bit_as<16>(load16(p + 16), S));
      const B16 hi = combine(nibble(load16(q + 16), S % 2), bit_as<16>(load16(p + 32), S));
      scaled(lo, hi, set1(scale[S]), set1(scale[8 + S]), out);
    }
  };
};
template <>
struct Format<DType::q6_k> : BlockFormat<210, 8> {  // ql[128], qh[64], scales[16], d
  struct Unit {
    const Byte* p;
    alignas(32) float scale[16];
    XGEN_INLINE explicit Unit(const Byte* unit) : p(unit) {
      scales16(load16(p + 192), read_half(p + 208) * kByteScale, scale);
    }
    template <int S>
    XGEN_INLINE void part(V (&out)[4]) const {
      const Byte* ql = p + S / 4 * 64 + S % 2 * 32;
      const Byte* qh = p + 128 + S / 4 * 32;
      const B16 lo = combine(nibble(load16(ql), S % 4 / 2), shift_left<4>(two_bits(load16(qh), S % 4)));
      const B16 hi = combine(nibble(load16(ql + 16), S % 4 / 2), shift_left<4>(two_bits(load16(qh + 16), S % 4)));
      scaled_halves(subtract(lo, 32), subtract(hi, 32), set1(scale[2 * S]), set1(scale[2 * S + 1]), out);
    }
  };
};

// Calls fn.operator()<0>() … fn.operator()<N - 1>().
template <class Fn, int... S>
XGEN_INLINE void unrolled(Fn&& fn, std::integer_sequence<int, S...>) {
  (fn.template operator()<S>(), ...);
}
template <int N, class Fn>
XGEN_INLINE void unroll(Fn&& fn) {
  unrolled(fn, std::make_integer_sequence<int, N>{});
}

// Decodes `count` elements from p, which is the begin of a unit: fn(element, vector, valid elements of the vector).
template <class F, class Fn>
XGEN_INLINE void decode(const Byte* p, i64 count, Fn&& fn) {
  constexpr i64 kElements = 32 * F::kParts;
  i64 at = 0;
  for (; at + kElements <= count; at += kElements, p += F::kBytes) {
    const typename F::Unit unit{p};
    unroll<F::kParts>([&]<int S>() {
      V v[4];
      unit.template part<S>(v);
      for (int j = 0; j < 4; ++j) fn(at + S * 32 + j * kLanes, v[j], i64{kLanes});
    });
  }
  if (F::plain && at < count) {
    V v[4];
    F::tail(p, static_cast<int>(count - at), v);
    for (int j = 0; at < count; at += kLanes, ++j) fn(at, v[j], min_of(count - at, kLanes));
  }
}

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
    decode<F>(w.row(row), w.k, [&](i64 i, V v, i64 count) { store_part(out + i, v, count); });
  });
}

// --- Matrix products.

XGEN_INLINE void write_outputs(const Matmul& op, i64 row, i64 n, int count, const float* sums) {
  float* y = op.y + row * op.y_stride + n;
  int r = 0;
  for (; r + kLanes <= count; r += kLanes) {
    V value = load(sums + r);
    if (op.bias != nullptr) value = add(value, load(op.bias + n + r));
    if (op.accumulate) value = add(value, load(y + r));
    store(y + r, value);
  }
  for (; r < count; ++r) {
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
  i64 k = 0;
  for (constexpr i64 kElements = 32 * F::kParts; k + kElements <= w.k; k += kElements) {
    using Unit = typename F::Unit;
    // The rows after these: hardware does not look ahead across the many short streams.
    for (int r = 0; r < R; ++r) {
      for (i64 line = 0; line < F::kBytes; line += 64) __builtin_prefetch(p[r] + R * w.row_bytes + line, 0, 2);
    }
    const auto meet = [&](const auto&... units) {
      unroll<F::kParts>([&]<int S>() {
        int r = 0;
        (([&] {
           V v[4];
           units.template part<S>(v);
           for (int j = 0; j < 4; ++j) {
             for (int i = 0; i < M; ++i) sum[r][i] = fma(v[j], load(x[i] + k + S * 32 + j * kLanes), sum[r][i]);
           }
           ++r;
         }()),
         ...);
      });
    };
    if constexpr (R == 4) {
      meet(Unit{p[0]}, Unit{p[1]}, Unit{p[2]}, Unit{p[3]});
    } else if constexpr (R == 2) {
      meet(Unit{p[0]}, Unit{p[1]});
    } else {
      meet(Unit{p[0]});
    }
    for (int r = 0; r < R; ++r) p[r] += F::kBytes;
  }
  if (F::plain && k < w.k) {
    const int rest = static_cast<int>(w.k - k);
    for (int r = 0; r < R; ++r) {
      V v[4];
      F::tail(p[r], rest, v);
      for (int j = 0; j * kLanes < rest; ++j) {
        for (int i = 0; i < M; ++i) {
          sum[r][i] = fma(v[j], load_padded(x[i] + k + j * kLanes, rest - j * kLanes), sum[r][i]);
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
// Not inlined: it needs every vector register for itself.
template <int R>
[[gnu::noinline]] void dot_tile(const float* weights, const float* rows, i64 vectors, bool first, float* sums) {
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

// Rows in groups of three; the last group may have fewer. Calls fn(GroupSize, first row).
template <int N>
struct GroupSize {
  static constexpr int value = N;
};
template <class Fn>
XGEN_INLINE void for_groups(i64 rows, Fn&& fn) {
  i64 r = 0;
  for (; r + 3 <= rows; r += 3) fn(GroupSize<3>{}, r);
  if (rows - r == 2) fn(GroupSize<2>{}, r);
  if (rows - r == 1) fn(GroupSize<1>{}, r);
}

// Elements [k0, k0 + depth) of weight rows n..n+3 as [vector][4][8]; rows past the end are zero. k0 begins a unit.
template <class F>
XGEN_INLINE void decode_four(const Rows& w, i64 n, i64 k0, i64 depth, float* out) {
  for (int r = 0; r < 4; ++r) {
    float* to = out + r * kLanes;
    if (n + r >= w.n) {
      for (i64 i = 0; i < depth; i += kLanes) store(to + i * 4, zero());
      continue;
    }
    decode<F>(w.row(n + r) + k0 / (32 * F::kParts) * F::kBytes, depth, [&](i64 i, V v, i64) { store(to + i * 4, v); });
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
  const i64 max_depth = min_of(kMatmulMaxDepth, kMatmulPackedFloats / max_of(chunk, 1) / 256 * 256);
  const i64 passes = (w.k + max_depth - 1) / max_depth;
  const i64 pass_depth = ((w.k + passes - 1) / passes + 255) / 256 * 256;  // whole units
  for (i64 mc = m0; mc < m1; mc += chunk) {
    const i64 rows = min_of(chunk, m1 - mc);
    for (i64 nc = n0; nc < n1; nc += kMatmulOutputsPerTile) {
      const i64 n_end = min_of(nc + kMatmulOutputsPerTile, n1);
      for (i64 k0 = 0; k0 < w.k; k0 += pass_depth) {
        const i64 depth = min_of(pass_depth, w.k - k0);
        const i64 vectors = (depth + kLanes - 1) / kLanes;
        if (passes > 1 || nc == n0) {
          for_groups(rows, [&]<int R>(GroupSize<R>, i64 r) {
            pack_rows<R>(op.x + (mc + r) * op.x_stride + k0, op.x_stride, depth, packed + r * vectors * kLanes);
          });
        }
        for (i64 n = nc; n < n_end; n += 4) {
          decode_four<F>(w, n, k0, depth, four);
          float* tile = sums + (n - nc) * rows * kLanes;
          for_groups(rows, [&]<int R>(GroupSize<R>, i64 r) {
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

}  // namespace
}  // namespace xgen::kernels::cpu

#include "kernels/cpu/integer_products.h"

namespace xgen::kernels::cpu {
namespace {

// Calls fn.operator()<rows>() for one row, and for up to four if `Several`; false for others.
template <bool Several, class Fn>
XGEN_INLINE bool for_few_rows(i64 rows, Fn&& fn) {
  if (rows == 1) return fn.template operator()<1>(), true;
  if constexpr (Several) {
    if (rows == 2) return fn.template operator()<2>(), true;
    if (rows == 3) return fn.template operator()<3>(), true;
    if (rows == 4) return fn.template operator()<4>(), true;
  }
  return false;
}

[[maybe_unused]] int activation_bits(DType type) {
  int bits = 0;
  with_format(type, [&]<class F>(F) { bits = F::integer ? 16 : 0; });
  return bits;
}

[[maybe_unused]] i64 not_packed(DType, i64, i64) { return 0; }

void matmul(const Matmul& op, i64 m0, i64 m1, i64 n0, i64 n1, Byte* scratch) {
  const Rows w = rows_of(op.weight);
  with_format(op.weight.dtype, [&]<class F>(F) {
    const i64 rows = m1 - m0;
    if constexpr (F::integer) {
      const auto few = [&]<int M>() { integer_skinny<F, M>(op, w, m0, n0, n1); };
      if (for_few_rows<true>(rows, few)) return;
      integer_wide<F>(op, w, m0, m1, n0, n1, scratch);
    } else {
      const auto few = [&]<int M>() { skinny<F, M>(op, w, m0, n0, n1); };
      // A large unit for several rows would be much code for little gain.
      if (for_few_rows<F::kParts == 1>(rows, few)) return;
      wide<F>(op, w, m0, m1, n0, n1, scratch);
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

// In a fixed order: four interleaved accumulators.
XGEN_INLINE float sum_of_squares(const float* x, i64 n) {
  V sum[4] = {zero(), zero(), zero(), zero()};
  const auto add_square = [&](V v, int j) { sum[j] = fma(v, v, sum[j]); };
  i64 i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    for (int j = 0; j < 4; ++j) add_square(load(x + i + j * kLanes), j);
  }
  for (int j = 0; i < n; i += kLanes, ++j) add_square(load_padded(x + i, n - i), j);
  return hsum(add(add(sum[0], sum[1]), add(sum[2], sum[3])));
}

void rms_norm(const float* x, i64 x_stride, const float* weight, float eps, i64 m, i64 n, float* out, i64 out_stride) {
  for (i64 r = 0; r < m; ++r, x += x_stride, out += out_stride) {
    const float squares = sum_of_squares(x, n);
    const V inverse = set1(1.0f / __builtin_sqrtf(squares / static_cast<float>(n) + eps));
    map_row(n, [&](i64 i, i64 count) {
      V v = mul(load_padded(x + i, count), inverse);
      if (weight != nullptr) v = mul(v, load_padded(weight + i, count));
      store_part(out + i, v, count);
    });
  }
}

void rope(const Rope& op, i64 m0, i64 m1) {
  const i64 half = op.rotary_dim / 2;
  for (i64 r = m0; r < m1; ++r) {
    const float* cos = op.cos + r * half;
    const float* sin = op.sin + r * half;
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

void exp_row(const float* x, float shift, i64 n, float* out) {
  const V s = set1(shift);
  map_row(n, [&](i64 i, i64 count) { store_part(out + i, exp_v(sub(load_padded(x + i, count), s)), count); });
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

  for_groups(rows, [&]<int R>(GroupSize<R>, i64 r) {
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
    for_groups(rows, [&]<int R>(GroupSize<R>, i64 r) {
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

    for_groups(rows, [&]<int R>(GroupSize<R>, i64 r) {
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

// Fills in a table with the functions above, and those of its products with quantised weights.
#define XGEN_KERNEL_TABLE(table_name, features, bits_of, quantise_function, packed_bytes_of, pack_function,       \
                          matmul_function)                                                                        \
  {                                                                                                               \
    .name = table_name, .required_features = features, .activation_bits = bits_of, .quantise = quantise_function, \
    .packed_bytes = packed_bytes_of, .pack = pack_function, .matmul = matmul_function,                            \
    .dequantise_row = dequantise_row, .rms_norm = rms_norm, .rope = rope, .gated = gated, .add = add_rows,        \
    .scale = scale_rows, .softcap = softcap_rows, .max = max_row, .exp = exp_row, .attention = attention,         \
    .kv_write = kv_write,                                                                                         \
  }
