// Products of weights that are blocks of 32 integers with a scale. The activations are quantised too, 32 at a time, to
// 16 bits: x = q d with d = max |x| / 32767, so that the products are integers, at about the precision of F32.
//
// Canonical order of a dot product over K: the sum of a block's 32 products, which is exact in 32 bits (at most
// 32 * 128 * 32768 = 2^27), is rounded to F32, multiplied by the product of the two scales and added to the sum of the
// blocks before it, with one rounding. Since the integer sums are exact, any order inside a block gives the same bits.
//
// Part of generic.h. Beyond its vector types it needs: I32, eight 32-bit integers (or sixteen of 16 bits); widen();
// multiply_add(), the sums of neighbouring 16-bit products added to 32-bit lanes; transposed sums; see avx2.cpp.
#pragma once

namespace xgen::kernels::cpu {
namespace {

constexpr i64 kBlock = 32;

// The 32 floats at x as integers up to `most_integer`, still in floats and not yet rounded; what they are to be
// multiplied with is returned. Not finite values make it NaN, and with it every result; below 1e-30 all counts as zero.
XGEN_INLINE float scale_block(const float* x, float most_integer, V (&v)[4]) {
  V size = zero();
  V poison = zero();  // x * 0: NaN where x is not finite
  for (int j = 0; j < 4; ++j) {
    v[j] = load(x + j * kLanes);
    size = max(size, max(v[j], sub(zero(), v[j])));
    poison = fma(v[j], zero(), poison);
  }
  const float most = hmax(size);
  const float nan = hsum(poison);
  const V inverse = set1(most >= 1e-30f ? most_integer / most : 0.0f);
  for (V& each : v) each = nan != 0 ? zero() : mul(each, inverse);  // no integers to be had of what is not finite
  return most * (1.0f / most_integer) + nan;
}

XGEN_INLINE void quantise_block(const float* x, std::int16_t* q, float* d) {
  V v[4];
  *d = scale_block(x, 32767.0f, v);
  for (int j = 0; j < 4; j += 2) store_int16(q + j * kLanes, v[j], v[j + 1]);
}

// out: int16 [m][k], then float [m][k / 32]; quantised_bytes() of them.
[[maybe_unused]] void quantise_rows(const float* x, i64 stride, i64 m, i64 k, i64 m0, i64 m1, Byte* out) {
  auto* q = reinterpret_cast<std::int16_t*>(out) + m0 * k;
  auto* d = reinterpret_cast<float*>(out + m * k * 2) + m0 * (k / kBlock);
  for (i64 r = m0; r < m1; ++r) {
    for (i64 i = 0; i < k; i += kBlock, q += kBlock) quantise_block(x + r * stride + i, q, d++);
  }
}

// Row r of op.quantised, from element k on.
struct IntegerRow {
  const std::int16_t* q;
  const float* d;
};
XGEN_INLINE IntegerRow integer_row(const Matmul& op, const Rows& w, i64 r, i64 k) {
  const auto* d = reinterpret_cast<const float*>(op.quantised + op.m * w.k * 2);
  return {reinterpret_cast<const std::int16_t*>(op.quantised) + r * w.k + k, d + (r * w.k + k) / kBlock};
}

// Few rows: eight weight rows at a time, straight from the mapped file, meet M activation rows.
template <class F, int M>
void integer_skinny(const Matmul& op, const Rows& w, i64 m0, i64 n0, i64 n1) {
  constexpr int R = 8;
  const auto [q, d] = integer_row(op, w, m0, 0);
  for (i64 n = n0; n < n1; n += R) {
    const Byte* p[R];
    for (int r = 0; r < R; ++r) p[r] = w.row(min_of(n + r, n1 - 1));
    V sum[M];
    for (V& s : sum) s = zero();
    for (i64 b = 0; b < w.k / kBlock; ++b) {
      // The rows after these: hardware does not look ahead across the many short streams.
      for (int r = 0; r < R; ++r) __builtin_prefetch(p[r] + R * w.row_bytes, 0, 2);
      const V scale = load_halves(p);
      for (int i = 0; i < M; ++i) {
        const std::int16_t* x = q + i * w.k + b * kBlock;
        const I32 x0 = load_int16(x);
        const I32 x1 = load_int16(x + 16);
        I32 part[R];
        for (int r = 0; r < R; ++r) {
          B16 values[2];
          F::integers(p[r], values);
          part[r] = multiply_add(multiply_add(zero_int(), widen(values[0]), x0), widen(values[1]), x1);
        }
        const V blocks = to_float(lane_sums(part));
        sum[i] = fma(blocks, mul(scale, set1(d[i * (w.k / kBlock) + b])), sum[i]);
      }
      for (const Byte*& row : p) row += F::kBytes;
    }
    for (int i = 0; i < M; ++i) {
      alignas(32) float sums[R];
      store(sums, sum[i]);
      write_outputs(op, m0 + i, n, static_cast<int>(min_of(R, n1 - n)), sums);
    }
  }
}

constexpr i64 kPanel = kMatmulIntegerPanel;  // outputs whose weights lie interleaved: [k / 2][16][2] 16-bit integers
constexpr i64 kIntegerDepth = kMatmulIntegerDepth;

// Elements [k0, k0 + depth) of weight rows n..n+15, rows past n_end repeated; scales as [depth / 32][16].
template <class F>
XGEN_INLINE void decode_panel(const Rows& w, i64 n, i64 n_end, i64 k0, i64 depth, std::int16_t* panel, float* scales) {
  for (i64 b = 0; b < depth / kBlock; ++b) {
    for (int half = 0; half < 2; ++half) {
      const Byte* p[8];
      for (int r = 0; r < 8; ++r) p[r] = w.row(min_of(n + 8 * half + r, n_end - 1)) + (k0 / kBlock + b) * F::kBytes;
      store(scales + b * kPanel + 8 * half, load_halves(p));
      for (int j = 0; j < 2; ++j) {
        I32 rows[8];
        for (int r = 0; r < 8; ++r) {
          B16 values[2];
          F::integers(p[r], values);
          rows[r] = widen(values[j]);
        }
        transpose(rows);
        for (int pair = 0; pair < 8; ++pair) {
          store_int(panel + ((b * 16 + j * 8 + pair) * 2 + half) * 16, rows[pair]);
        }
      }
    }
  }
}

// sums[r][16] += the products of R quantised rows with a panel. Not inlined: it needs every vector register.
template <int R>
[[gnu::noinline]] void integer_tile(const std::int16_t* panel, const float* scales, const std::int16_t* q, i64 q_stride,
                                    const float* d, i64 d_stride, i64 blocks, float* sums, i64 sums_stride) {
  for (i64 b = 0; b < blocks; ++b) {
    I32 part[R][2];
    for (auto& row : part) row[0] = row[1] = zero_int();
    for (int pair = 0; pair < 16; ++pair) {
      const I32 w0 = load_int16(panel);
      const I32 w1 = load_int16(panel + 16);
      for (int r = 0; r < R; ++r) {
        const I32 x = repeat_pair(q + r * q_stride + 2 * pair);
        part[r][0] = multiply_add(part[r][0], w0, x);
        part[r][1] = multiply_add(part[r][1], w1, x);
        pin(part[r][0]);
        pin(part[r][1]);
      }
      panel += 2 * kPanel;
    }
    for (int r = 0; r < R; ++r) {
      const V scale = set1(d[r * d_stride + b]);
      for (int half = 0; half < 2; ++half) {
        float* sum = sums + r * sums_stride + half * kLanes;
        store(sum, fma(to_float(part[r][half]), mul(load(scales + half * kLanes), scale), load(sum)));
      }
    }
    q += kBlock;
    scales += kPanel;
  }
}

static_assert(kPanel * (kIntegerDepth * 2 + kIntegerDepth / kBlock * 4) + kMatmulRows * kPanel * 4 <=
              i64{kMatmulIntegerScratchBytes});

// Many rows: each sixteen weight rows are widened and interleaved in L1 and meet all of them.
template <class F>
void integer_wide(const Matmul& op, const Rows& w, i64 m0, i64 m1, i64 n0, i64 n1, Byte* scratch) {
  constexpr i64 kRows = 6;
  auto* sums = reinterpret_cast<float*>(scratch);
  auto* scales = sums + kMatmulRows * kPanel;
  auto* panel = reinterpret_cast<std::int16_t*>(scales + kPanel * (kIntegerDepth / kBlock));
  for (i64 n = n0; n < n1; n += kPanel) {
    for (i64 i = 0; i < (m1 - m0) * kPanel; i += kLanes) store(sums + i, zero());
    for (i64 k0 = 0; k0 < w.k; k0 += kIntegerDepth) {
      const i64 depth = min_of(kIntegerDepth, w.k - k0);
      decode_panel<F>(w, n, n1, k0, depth, panel, scales);
      const auto meet = [&]<int R>(GroupSize<R>, i64 r) {
        const auto [q, d] = integer_row(op, w, m0 + r, k0);
        integer_tile<R>(panel, scales, q, w.k, d, w.k / kBlock, depth / kBlock, sums + r * kPanel, kPanel);
      };
      i64 r = 0;
      for (; r + kRows <= m1 - m0; r += kRows) meet(GroupSize<kRows>{}, r);
      for_groups(m1 - m0 - r, [&]<int R>(GroupSize<R> size, i64 i) { meet(size, r + i); });
    }
    for (i64 m = m0; m < m1; ++m)
      write_outputs(op, m, n, static_cast<int>(min_of(kPanel, n1 - n)), sums + (m - m0) * kPanel);
  }
}

}  // namespace
}  // namespace xgen::kernels::cpu
