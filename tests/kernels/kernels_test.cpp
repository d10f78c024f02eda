// Every kernel table that this CPU can run, against plain references in double precision, and against itself: the same
// bits for every number of rows, every tiling and every number of threads.
#include "kernels/kernel_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "base/worker_pool.h"
#include "kernels/ops.h"

namespace xgen::kernels {
namespace {

using i64 = std::int64_t;

// memcmp as a matcher: floats that compare equal may still differ (-0, NaN).
bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

std::vector<float> random_floats(std::size_t n, unsigned seed, float scale = 1) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, scale);
  std::vector<float> out(n);
  for (float& x : out) x = normal(random);
  return out;
}

struct Weights {
  std::vector<std::byte> storage;
  TensorView view;
};

// Random weights of any format: random quants, scales of a sane size. `pad` misaligns the data.
Weights random_weights(DType type, i64 n, i64 k, unsigned seed, std::size_t pad = 0) {
  Weights w;
  w.view = {type, make_shape({n, k}), nullptr};
  w.storage.resize(w.view.bytes() + pad);
  w.view.data = w.storage.data() + pad;
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, 0.05f);
  std::byte* p = w.storage.data() + pad;
  const auto put_half = [&](std::byte* at, float scale) {
    const std::uint16_t bits = f32_to_f16(normal(random) * scale);
    std::memcpy(at, &bits, 2);
  };
  if (!is_quantised(type)) {
    for (i64 i = 0; i < n * k; ++i) {
      const float x = normal(random);
      if (type == DType::f32) {
        std::memcpy(p + i * 4, &x, 4);
      } else {
        const std::uint16_t bits = type == DType::f16 ? f32_to_f16(x) : f32_to_bf16(x);
        std::memcpy(p + i * 2, &bits, 2);
      }
    }
    return w;
  }
  for (std::size_t i = 0; i < w.view.bytes(); ++i) p[i] = static_cast<std::byte>(random());
  const std::size_t block = dtype_info(type).block_bytes;
  for (std::size_t at = 0; at < w.view.bytes(); at += block) {
    switch (type) {
      case DType::q4_1:
      case DType::q5_1:
      case DType::q4_k:
      case DType::q5_k:
        put_half(p + at, 0.1f);
        put_half(p + at + 2, 0.1f);
        break;
      case DType::q2_k:
        put_half(p + at + 80, 0.1f);
        put_half(p + at + 82, 0.1f);
        break;
      case DType::q3_k:
        put_half(p + at + 108, 0.1f);
        break;
      case DType::q6_k:
        put_half(p + at + 208, 0.1f);
        break;
      default:
        put_half(p + at, 0.1f);
    }
  }
  return w;
}

constexpr DType kFormats[] = {DType::f32,  DType::f16,  DType::bf16, DType::q4_0, DType::q4_1, DType::q5_0, DType::q5_1,
                              DType::q8_0, DType::q2_k, DType::q3_k, DType::q4_k, DType::q5_k, DType::q6_k};

// What rounding activations to so many bits does to a sum, at most, as a share of the sum of its terms' sizes.
double rounding(int bits) { return bits == 8 ? 5e-3 : bits == 16 ? 1e-5 : 1e-6; }

class Kernels : public testing::TestWithParam<const KernelTable*> {
 protected:
  const KernelTable& table() const { return *GetParam(); }

  std::vector<float> decode(const TensorView& w) const {
    std::vector<float> out(static_cast<std::size_t>(w.rows() * w.cols()));
    for (i64 r = 0; r < w.rows(); ++r) table().dequantise_row(w, r, out.data() + r * w.cols());
    return out;
  }

  // y[m, n] through ops.h with the given threads.
  std::vector<float> product(const TensorView& w, const std::vector<float>& x, i64 m, int threads,
                             const std::vector<float>* bias = nullptr, const std::vector<float>* residual = nullptr,
                             const std::vector<std::byte>& packed = {}) const {
    WorkerPool pool(threads);
    Workspace workspace(threads, 64);
    std::vector<float> y =
        residual != nullptr ? *residual : std::vector<float>(static_cast<std::size_t>(m * w.rows()), -7.0f);
    Matmul op;
    op.weight = w;
    op.x = x.data();
    op.x_stride = w.cols();
    op.y = y.data();
    op.y_stride = w.rows();
    op.m = m;
    op.bias = bias != nullptr ? bias->data() : nullptr;
    op.accumulate = residual != nullptr;
    op.packed = packed.empty() ? nullptr : packed.data();
    matmul(table(), pool, workspace, op);
    return y;
  }
};

INSTANTIATE_TEST_SUITE_P(Isa, Kernels, testing::ValuesIn(available_kernels()),
                         [](const auto& test) { return std::string(test.param->name); });

TEST(Selection, ForcedAndUnknown) {
  const auto best = select_kernels();
  ASSERT_TRUE(best.ok());
  EXPECT_EQ(*best, available_kernels().front());
  const auto scalar = select_kernels("scalar");
  ASSERT_TRUE(scalar.ok());
  EXPECT_EQ((*scalar)->name, "scalar");
  const auto none = select_kernels("mmx");
  ASSERT_FALSE(none.ok());
  EXPECT_THAT(none.error().message, testing::HasSubstr("\"mmx\""));
  EXPECT_THAT(none.error().message, testing::HasSubstr("scalar"));
}

TEST(Selection, AllTablesDecodeAlike) {
  const auto tables = available_kernels();
  for (const DType type : kFormats) {
    const Weights w = random_weights(type, 5, 512, 3, 1);
    std::vector<float> first(512);
    std::vector<float> other(512);
    for (i64 r = 0; r < 5; ++r) {
      tables.front()->dequantise_row(w.view, r, first.data());
      for (const KernelTable* table : tables) {
        table->dequantise_row(w.view, r, other.data());
        EXPECT_TRUE(same_bits(first, other)) << dtype_info(type).name << " " << table->name;
      }
    }
  }
}

TEST_P(Kernels, MatmulAgainstDouble) {
  for (const DType type : kFormats) {
    const bool plain = !is_quantised(type);
    for (const i64 k : plain ? std::vector<i64>{1, 7, 8, 33, 64, 300, 1031} : std::vector<i64>{256, 1280}) {
      for (const i64 n : {1, 3, 4, 37}) {
        const Weights w = random_weights(type, n, k, static_cast<unsigned>(k + n), 1);
        const std::vector<float> weights = decode(w.view);
        for (const i64 m : {1, 2, 3, 4, 5, 7, 130}) {
          const std::vector<float> x = random_floats(static_cast<std::size_t>(m * k), 5);
          const std::vector<float> bias = random_floats(static_cast<std::size_t>(n), 6);
          const std::vector<float> residual = random_floats(static_cast<std::size_t>(m * n), 7);
          const std::vector<float> y = product(w.view, x, m, 2, &bias, &residual);
          for (i64 r = 0; r < m; ++r) {
            for (i64 c = 0; c < n; ++c) {
              double sum = 0;
              double size = 0;
              for (i64 i = 0; i < k; ++i) {
                const double t = static_cast<double>(weights[static_cast<std::size_t>(c * k + i)]) *
                                 static_cast<double>(x[static_cast<std::size_t>(r * k + i)]);
                sum += t;
                size += std::abs(t);
              }
              const auto at = static_cast<std::size_t>(r * n + c);
              sum += static_cast<double>(bias[static_cast<std::size_t>(c)]) + static_cast<double>(residual[at]);
              size += 3;
              ASSERT_NEAR(static_cast<double>(y[at]), sum, rounding(GetParam()->activation_bits(type)) * size)
                  << dtype_info(type).name << " m=" << m << " n=" << n << " k=" << k << " at " << r << "," << c;
            }
          }
        }
      }
    }
  }
}

TEST_P(Kernels, MatmulBitsDoNotDependOnTheBatch) {
  for (const DType type : kFormats) {
    const i64 k = is_quantised(type) ? 2304 : 1100;  // several passes over K, and a tail for the plain formats
    const i64 n = 71;
    const Weights w = random_weights(type, n, k, 11);
    const i64 most = 250;
    const std::vector<float> x = random_floats(static_cast<std::size_t>(most * k), 12);
    std::vector<float> alone;
    for (i64 r = 0; r < most; ++r) {
      const std::vector<float> row(x.begin() + r * k, x.begin() + (r + 1) * k);
      const std::vector<float> y = product(w.view, row, 1, 1);
      alone.insert(alone.end(), y.begin(), y.end());
    }
    std::vector<i64> sizes;
    for (i64 m = 1; m <= 40; ++m) sizes.push_back(m);
    sizes.insert(sizes.end(), {119, 120, 121, 241, 250});
    for (const i64 m : sizes) {
      const std::vector<float> rows(x.begin(), x.begin() + m * k);
      const std::vector<float> expected(alone.begin(), alone.begin() + m * n);
      for (const int threads : m <= 40 ? std::vector<int>{1, 2, 3} : std::vector<int>{2}) {
        ASSERT_TRUE(same_bits(product(w.view, rows, m, threads), expected))
            << dtype_info(type).name << " m=" << m << " threads=" << threads;
      }
    }
  }
}

TEST_P(Kernels, PackedWeightsGiveTheSameBits) {
  for (const DType type : kFormats) {
    const i64 k = is_quantised(type) ? 2304 : 1100;
    const i64 n = 71;
    const auto bytes = static_cast<std::size_t>(table().packed_bytes(type, n, k));
    if (bytes == 0) continue;
    const Weights w = random_weights(type, n, k, 41);
    EXPECT_LE(bytes, (w.view.bytes() / 71 + 1) * 96 * 107 / 100);  // of the 96 outputs of whole panels, and little more
    std::vector<std::byte> packed(bytes, std::byte{0xee});
    table().pack(w.view, 32, n, packed.data());  // in any order
    table().pack(w.view, 0, 32, packed.data());
    const std::vector<float> x = random_floats(static_cast<std::size_t>(250 * k), 42);
    const std::vector<float> bias = random_floats(static_cast<std::size_t>(n), 43);
    std::vector<i64> sizes;
    for (i64 m = 1; m <= 34; ++m) sizes.push_back(m);
    sizes.insert(sizes.end(), {121, 250});
    for (const i64 m : sizes) {
      const std::vector<float> rows(x.begin(), x.begin() + m * k);
      ASSERT_TRUE(same_bits(product(w.view, rows, m, 2, &bias, nullptr, packed), product(w.view, rows, m, 2, &bias)))
          << dtype_info(type).name << " m=" << m;
    }
  }
}

TEST(Selection, TilesGiveTheBitsOfVectors) {
  const auto vectors = select_kernels("avx512");
  const auto tiles = select_kernels("amx");
  if (!vectors.ok() || !tiles.ok()) GTEST_SKIP() << "this CPU has no AMX";
  for (const DType type : kFormats) {
    if (!is_quantised(type)) continue;
    const i64 m = 45;
    const i64 n = 70;
    const i64 k = 1280;
    const Weights w = random_weights(type, n, k, 5);
    const std::vector<float> x = random_floats(static_cast<std::size_t>(m * k), 6);
    std::vector<float> y[2];
    for (int i = 0; i < 2; ++i) {
      y[i].assign(static_cast<std::size_t>(m * n), 0.0f);
      WorkerPool pool(2);
      Workspace workspace(2, 64);
      matmul(i == 0 ? **vectors : **tiles, pool, workspace,
             Matmul{.weight = w.view, .x = x.data(), .x_stride = k, .y = y[i].data(), .y_stride = n, .m = m});
    }
    EXPECT_TRUE(same_bits(y[0], y[1])) << dtype_info(type).name;
  }
}

TEST_P(Kernels, ExtremeMatmulInputs) {
  // Denormals, huge values and signed zeros keep their bits too; NaN and infinity stay in their own row.
  for (const DType type : {DType::f32, DType::q8_0}) {
    const i64 k = 96;
    const i64 n = 9;
    const Weights w = random_weights(type, n, k, 21);
    std::vector<float> x = random_floats(static_cast<std::size_t>(8 * k), 22);
    for (i64 i = 0; i < k; ++i) {
      x[static_cast<std::size_t>(i)] *= 1e-40f;
      x[static_cast<std::size_t>(k + i)] *= 1e36f;
      x[static_cast<std::size_t>(2 * k + i)] = i % 2 == 0 ? 0.0f : -0.0f;
    }
    x[static_cast<std::size_t>(3 * k + 5)] = std::numeric_limits<float>::quiet_NaN();
    x[static_cast<std::size_t>(4 * k + 5)] = std::numeric_limits<float>::infinity();
    const std::vector<float> all = product(w.view, x, 8, 1);
    for (i64 r = 0; r < 8; ++r) {
      const std::vector<float> one = product(w.view, {x.begin() + r * k, x.begin() + (r + 1) * k}, 1, 1);
      for (i64 c = 0; c < n; ++c) {
        const float a = all[static_cast<std::size_t>(r * n + c)];
        const float b = one[static_cast<std::size_t>(c)];
        if (r == 3) {
          EXPECT_TRUE(std::isnan(a) && std::isnan(b));
        } else if (r == 4) {
          EXPECT_TRUE(!std::isfinite(a) && !std::isfinite(b));
        } else {
          EXPECT_EQ(std::memcmp(&a, &b, sizeof a), 0) << r << "," << c;
          EXPECT_TRUE(std::isfinite(a)) << r << "," << c;
        }
      }
    }
  }
}

TEST_P(Kernels, IntegerSumsAreExactAtTheirLimits) {
  // Every product of a block at its greatest: 32 * 128 * 32767, beyond what 24 bits hold.
  const i64 k = 64;
  std::vector<std::byte> row(static_cast<std::size_t>(k / 32 * 34), static_cast<std::byte>(-128));
  const std::uint16_t one = f32_to_f16(1);
  for (std::size_t block = 0; block < row.size(); block += 34) std::memcpy(row.data() + block, &one, 2);
  const TensorView w{DType::q8_0, make_shape({1, k}), row.data()};
  for (const float x : {1.0f, -1.0f, 32767.0f}) {
    for (const i64 m : {1, 5}) {
      for (const float y : product(w, std::vector<float>(static_cast<std::size_t>(m * k), x), m, 1)) {
        EXPECT_NEAR(y, -128.0f * x * static_cast<float>(k), 1e-6f * 128 * std::abs(x) * static_cast<float>(k));
      }
    }
  }
}

TEST_P(Kernels, ManyActivationsInOneSectionKeepTheirBits) {
  // More of them than the workspace was made for.
  const i64 k = 16384;
  const Weights w = random_weights(DType::q8_0, 5, k, 31);
  const std::vector<float> x = random_floats(static_cast<std::size_t>(20 * k), 32);
  std::vector<float> y(100, -7.0f);
  std::vector<Matmul> ops;
  std::vector<float> alone;
  for (i64 i = 0; i < 20; ++i) {
    ops.push_back(
        {.weight = w.view, .x = x.data() + i * k, .x_stride = k, .y = y.data() + 5 * i, .y_stride = 5, .m = 1});
    const std::vector<float> one = product(w.view, {x.begin() + i * k, x.begin() + (i + 1) * k}, 1, 1);
    alone.insert(alone.end(), one.begin(), one.end());
  }
  WorkerPool pool(2);
  Workspace workspace(2, 64);
  matmul(table(), pool, workspace, ops);
  EXPECT_TRUE(same_bits(y, alone));
}

TEST_P(Kernels, SeveralProductsInOneSection) {
  const Weights a = random_weights(DType::q8_0, 40, 64, 1);
  const Weights b = random_weights(DType::q4_0, 24, 64, 2);
  const std::vector<float> x = random_floats(6 * 64, 3);
  const std::vector<float> ya = product(a.view, x, 6, 1);
  const std::vector<float> yb = product(b.view, x, 6, 1);
  std::vector<float> za(ya.size());
  std::vector<float> zb(yb.size());
  Matmul ops[2];
  ops[0] = {.weight = a.view, .x = x.data(), .x_stride = 64, .y = za.data(), .y_stride = 40, .m = 6};
  ops[1] = {.weight = b.view, .x = x.data(), .x_stride = 64, .y = zb.data(), .y_stride = 24, .m = 6};
  WorkerPool pool(3);
  Workspace workspace(3, 64);
  matmul(table(), pool, workspace, ops);
  EXPECT_TRUE(same_bits(ya, za));
  EXPECT_TRUE(same_bits(yb, zb));
}

TEST_P(Kernels, EmbedGathersAndScales) {
  const Weights w = random_weights(DType::q6_k, 10, 256, 4);
  const std::vector<float> rows = decode(w.view);
  const std::vector<std::int32_t> ids{9, 0, 3, 3};
  std::vector<float> out(4 * 256);
  WorkerPool pool(2);
  embed(table(), pool, w.view, ids, 2.0f, out.data(), 256);
  for (std::size_t r = 0; r < ids.size(); ++r) {
    for (std::size_t i = 0; i < 256; ++i) {
      ASSERT_EQ(out[r * 256 + i], 2.0f * rows[static_cast<std::size_t>(ids[r]) * 256 + i]);
    }
  }
}

TEST_P(Kernels, ExpIsAccurateEverywhere) {
  std::vector<float> x;
  for (float v = -110; v < 90; v += 0.00137f) x.push_back(v);
  x.insert(x.end(), {0.0f, -0.0f, 88.7f, 1e30f, -1e30f, std::numeric_limits<float>::infinity(),
                     -std::numeric_limits<float>::infinity()});
  std::vector<float> y(x.size());
  table().exp(x.data(), 0, static_cast<i64>(x.size()), y.data());
  double worst = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double expected = std::exp(static_cast<double>(x[i]));
    if (expected > 3.4028235e38) {
      EXPECT_TRUE(std::isinf(y[i])) << x[i];
    } else if (expected < 1.2e-38) {
      EXPECT_NEAR(static_cast<double>(y[i]), expected, 2.9e-45) << x[i];  // two denormal steps
    } else {
      worst = std::max(worst, std::abs(static_cast<double>(y[i]) / expected - 1));
    }
  }
  EXPECT_LT(worst, 2e-7);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  float out = 0;
  table().exp(&nan, 0, 1, &out);
  EXPECT_TRUE(std::isnan(out));
}

TEST_P(Kernels, Activations) {
  std::vector<float> gate;
  for (float v = -30; v < 30; v += 0.0171f) gate.push_back(v);
  gate.insert(gate.end(), {0.0f, -0.0f, 1e-30f, -1e-30f, 1e-42f, 1000.0f, -1000.0f});
  const std::vector<float> up = random_floats(gate.size(), 8);
  const auto n = static_cast<i64>(gate.size());
  const auto reference = [](GatedActivation a, double x) {
    switch (a) {
      case GatedActivation::silu:
        return x / (1 + std::exp(-x));
      case GatedActivation::gelu_tanh:
        return 0.5 * x * (1 + std::tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)));
      default:
        return 0.5 * x * std::erfc(-x * 0.7071067811865476);
    }
  };
  for (const GatedActivation a : {GatedActivation::silu, GatedActivation::gelu_tanh, GatedActivation::gelu_erf}) {
    std::vector<float> out(gate.size());
    table().gated(a, gate.data(), n, up.data(), n, 1, n, out.data(), n);
    std::vector<float> alone = gate;
    table().gated(a, alone.data(), n, nullptr, 0, 1, n, alone.data(), n);
    for (std::size_t i = 0; i < gate.size(); ++i) {
      const double expected = reference(a, static_cast<double>(gate[i]));
      const double tolerance = 1e-6 * std::abs(expected) + 1e-7 * std::min(1.0, std::abs(static_cast<double>(gate[i])));
      ASSERT_NEAR(static_cast<double>(alone[i]), expected, tolerance) << static_cast<int>(a) << " " << gate[i];
      ASSERT_EQ(out[i], alone[i] * up[i]);
    }
  }
}

TEST_P(Kernels, Norms) {
  for (const i64 n : {1, 5, 8, 64, 100, 896, 1031}) {
    const std::vector<float> x = random_floats(static_cast<std::size_t>(3 * (n + 2)), 9, 3);
    const std::vector<float> weight = random_floats(static_cast<std::size_t>(n), 10);
    std::vector<float> rms(static_cast<std::size_t>(3 * n));
    table().rms_norm(x.data(), n + 2, weight.data(), 1e-5f, 3, n, rms.data(), n);
    for (i64 r = 0; r < 3; ++r) {
      double squares = 0;
      const auto at = [&](i64 i) { return static_cast<double>(x[static_cast<std::size_t>(r * (n + 2) + i)]); };
      for (i64 i = 0; i < n; ++i) {
        squares += at(i) * at(i);
      }
      for (i64 i = 0; i < n; ++i) {
        const auto c = static_cast<std::size_t>(i);
        const auto o = static_cast<std::size_t>(r * n + i);
        const double w = static_cast<double>(weight[c]);
        const double expected_rms = at(i) / std::sqrt(squares / static_cast<double>(n) + 1e-5) * w;
        ASSERT_NEAR(static_cast<double>(rms[o]), expected_rms, 2e-6 * (1 + std::abs(expected_rms)));
      }
    }
    std::vector<float> in_place(x.begin(), x.begin() + n);
    table().rms_norm(in_place.data(), n, weight.data(), 1e-5f, 1, n, in_place.data(), n);
    EXPECT_TRUE(same_bits(in_place, {rms.begin(), rms.begin() + n}));
  }
}

TEST_P(Kernels, RopeBothLayoutsPartial) {
  const int head_dim = 40;
  const int rotary = 24;
  const int heads = 3;
  const i64 m = 4;
  const i64 stride = heads * head_dim + 5;
  std::vector<float> cos(4 * rotary / 2);
  std::vector<float> sin(cos.size());
  for (std::size_t i = 0; i < cos.size(); ++i) {
    const double angle = 0.37 * static_cast<double>(i);
    cos[i] = static_cast<float>(std::cos(angle));
    sin[i] = static_cast<float>(std::sin(angle));
  }
  for (const bool interleaved : {false, true}) {
    const std::vector<float> before = random_floats(static_cast<std::size_t>(m * stride), 13);
    std::vector<float> x = before;
    Rope op;
    op.x = x.data();
    op.stride = stride;
    op.m = m;
    op.heads = heads;
    op.head_dim = head_dim;
    op.rotary_dim = rotary;
    op.interleaved = interleaved;
    op.cos = cos.data();
    op.sin = sin.data();
    table().rope(op, 0, 3);  // row 3 stays
    for (i64 r = 0; r < m; ++r) {
      for (int h = 0; h < heads; ++h) {
        for (int i = 0; i < head_dim; ++i) {
          const auto base = static_cast<std::size_t>(r * stride + h * head_dim);
          const auto at = [&](int e) { return static_cast<double>(before[base + static_cast<std::size_t>(e)]); };
          double expected = at(i);
          if (i < rotary && r < 3) {
            const int pair = interleaved ? i / 2 : i % (rotary / 2);
            const bool second = interleaved ? i % 2 == 1 : i >= rotary / 2;
            const auto t = static_cast<std::size_t>(r * rotary / 2 + pair);
            const double a = interleaved ? at(2 * pair) : at(pair);
            const double b = interleaved ? at(2 * pair + 1) : at(pair + rotary / 2);
            const double c = static_cast<double>(cos[t]);
            const double s = static_cast<double>(sin[t]);
            expected = second ? b * c + a * s : a * c - b * s;
          }
          ASSERT_NEAR(static_cast<double>(x[base + static_cast<std::size_t>(i)]), expected, 1e-6);
        }
      }
    }
  }
}

TEST_P(Kernels, SmallOps) {
  const i64 n = 29;
  const std::vector<float> a = random_floats(2 * 29, 14);
  const std::vector<float> b = random_floats(2 * 29, 15);
  std::vector<float> out(2 * 29);
  table().add(a.data(), n, b.data(), n, 2, n, out.data(), n);
  for (std::size_t i = 0; i < out.size(); ++i) ASSERT_EQ(out[i], a[i] + b[i]);
  table().scale(0.3f, 2, n, out.data(), n);
  for (std::size_t i = 0; i < out.size(); ++i) ASSERT_EQ(out[i], (a[i] + b[i]) * 0.3f);
  std::vector<float> x{0.0f, 1e-20f, 0.1f, -0.5f, 3, -17, 29.9f, 30, 31, -100, 1e30f, -1e30f};
  const std::vector<float> before = x;
  table().softcap(30, 1, static_cast<i64>(x.size()), x.data(), 0);
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double expected = 30 * std::tanh(static_cast<double>(before[i]) / 30);
    EXPECT_NEAR(static_cast<double>(x[i]), expected, 3e-7 * std::abs(expected) + 1e-30) << before[i];
  }
}

TEST_P(Kernels, MaxOfARow) {
  const float inf = std::numeric_limits<float>::infinity();
  for (const i64 n : {1, 3, 8, 9, 1000, 5003}) {
    const std::vector<float> x = random_floats(static_cast<std::size_t>(n), 16, 5);
    EXPECT_EQ(table().max(x.data(), n), *std::max_element(x.begin(), x.end()));
  }
  const std::vector<float> gaps{1, std::nanf(""), -inf, 5, std::nanf(""), 4, 2, 3, 4, std::nanf("")};
  EXPECT_EQ(table().max(gaps.data(), 10), 5);
  EXPECT_EQ(table().max(gaps.data(), 0), -inf);
}

// --- Attention.

struct AttentionCase {
  int heads;
  int kv_heads;
  int head_dim;
  int block_size;
  DType dtype;
  i64 window;
  float softcap;
};

// A cache with one sequence of `length` positions in blocks of a shuffled order. Unused memory is NaN.
class Sequence {
 public:
  Sequence(const KernelTable& table, const AttentionCase& c, i64 length, unsigned block_seed)
      : case_(c), length_(length) {
    const i64 blocks = (length + c.block_size - 1) / c.block_size;
    const i64 total = blocks + 3;
    for (i64 b = 0; b < total; ++b) blocks_.push_back(static_cast<std::int32_t>(b));
    std::mt19937 random(block_seed);
    std::shuffle(blocks_.begin(), blocks_.end(), random);
    cache_.dtype = c.dtype;
    cache_.kv_heads = c.kv_heads;
    cache_.head_dim = c.head_dim;
    cache_.block_size = c.block_size;
    k_.assign(cache_.block_bytes() * static_cast<std::size_t>(total), std::byte{0xff});
    v_ = k_;
    cache_.k = k_.data();
    cache_.v = v_.data();
    const std::size_t width = static_cast<std::size_t>(c.kv_heads) * static_cast<std::size_t>(c.head_dim);
    keys = random_floats(static_cast<std::size_t>(length) * width, 100);
    values = random_floats(static_cast<std::size_t>(length) * width, 101);
    queries = random_floats(static_cast<std::size_t>(length) * static_cast<std::size_t>(c.heads * c.head_dim), 102, 2);
    std::vector<i64> slots;
    for (i64 p = 0; p < length; ++p) {
      slots.push_back(i64{blocks_[static_cast<std::size_t>(p / c.block_size)]} * c.block_size + p % c.block_size);
    }
    table.kv_write(cache_, keys.data(), static_cast<i64>(width), values.data(), static_cast<i64>(width), slots.data(),
                   length);
  }

  // Rows of positions [first, last), computed in one call.
  std::vector<float> run(const KernelTable& table, i64 first, i64 last, int threads) const {
    const i64 stride = i64{case_.heads} * case_.head_dim;
    std::vector<float> out(static_cast<std::size_t>((last - first) * stride), -3.0f);
    AttentionSequence s;
    s.blocks = blocks_.data();
    s.first_row = 0;
    s.rows = last - first;
    s.first_pos = first;
    Attention op;
    op.q = queries.data() + first * stride;
    op.q_stride = stride;
    op.out = out.data();
    op.out_stride = stride;
    op.heads = case_.heads;
    op.scale = 1.0f / std::sqrt(static_cast<float>(case_.head_dim));
    op.softcap = case_.softcap;
    op.window = case_.window;
    op.cache = cache_;
    op.sequences = {&s, 1};
    WorkerPool pool(threads);
    Workspace workspace(threads, case_.head_dim);
    attention(table, pool, workspace, op);
    return out;
  }

  std::vector<double> reference(i64 pos, int head) const {
    const int kv = head / (case_.heads / case_.kv_heads);
    const auto round = [&](float x) {
      if (case_.dtype == DType::f16) return f16_to_f32(f32_to_f16(x));
      if (case_.dtype == DType::bf16) return bf16_to_f32(f32_to_bf16(x));
      return x;
    };
    const auto dim = static_cast<std::size_t>(case_.head_dim);
    const auto at = [&](const std::vector<float>& rows, i64 p, std::size_t d) {
      const auto row =
          static_cast<std::size_t>(p) * static_cast<std::size_t>(case_.kv_heads) + static_cast<std::size_t>(kv);
      return static_cast<double>(round(rows[row * dim + d]));
    };
    const i64 begin = case_.window > 0 ? std::max<i64>(0, pos - case_.window + 1) : 0;
    std::vector<double> scores;
    for (i64 p = begin; p <= pos; ++p) {
      double s = 0;
      for (std::size_t d = 0; d < dim; ++d) {
        const auto q =
            (static_cast<std::size_t>(pos) * static_cast<std::size_t>(case_.heads) + static_cast<std::size_t>(head)) *
                dim +
            d;
        s += static_cast<double>(queries[q]) * at(keys, p, d);
      }
      s /= std::sqrt(static_cast<double>(case_.head_dim));
      if (case_.softcap > 0) s = static_cast<double>(case_.softcap) * std::tanh(s / static_cast<double>(case_.softcap));
      scores.push_back(s);
    }
    const double top = *std::max_element(scores.begin(), scores.end());
    double total = 0;
    for (double& s : scores) total += s = std::exp(s - top);
    std::vector<double> out(dim);
    for (std::size_t d = 0; d < dim; ++d) {
      for (i64 p = begin; p <= pos; ++p)
        out[d] += scores[static_cast<std::size_t>(p - begin)] / total * at(values, p, d);
    }
    return out;
  }

  std::vector<float> keys;
  std::vector<float> values;
  std::vector<float> queries;

 private:
  AttentionCase case_;
  i64 length_;
  std::vector<std::int32_t> blocks_;
  KvCache cache_;
  std::vector<std::byte> k_;
  std::vector<std::byte> v_;
};

const AttentionCase kAttentionCases[] = {
    {4, 4, 64, 16, DType::f32, 0, 0},   {14, 2, 64, 16, DType::f16, 0, 0},  {8, 2, 20, 32, DType::bf16, 0, 0},
    {6, 1, 128, 64, DType::f16, 0, 50}, {4, 2, 32, 16, DType::f32, 37, 0},  {4, 2, 32, 8, DType::f16, 100, 30},
    {64, 1, 8, 1, DType::f32, 1, 0},    {3, 3, 256, 16, DType::f16, 64, 0},
};

TEST_P(Kernels, AttentionAgainstDouble) {
  for (const AttentionCase& c : kAttentionCases) {
    const i64 length = 203;
    const Sequence sequence(table(), c, length, 1);
    const std::vector<float> out = sequence.run(table(), 0, length, 2);
    const auto width = static_cast<std::size_t>(c.heads * c.head_dim);
    for (const i64 pos : {0, 1, 36, 37, 63, 64, 65, 127, 128, 202}) {
      for (int h = 0; h < c.heads; ++h) {
        const std::vector<double> expected = sequence.reference(pos, h);
        for (std::size_t d = 0; d < expected.size(); ++d) {
          const float got = out[static_cast<std::size_t>(pos) * width + static_cast<std::size_t>(h * c.head_dim) + d];
          ASSERT_NEAR(static_cast<double>(got), expected[d], 5e-6) << "pos " << pos << " head " << h << " dim " << d;
        }
      }
    }
  }
}

TEST_P(Kernels, AttentionBitsDoNotDependOnTheBatch) {
  for (const AttentionCase& c : kAttentionCases) {
    const i64 length = 203;
    const Sequence sequence(table(), c, length, 1);
    const Sequence elsewhere(table(), c, length, 2);  // the same numbers in other blocks
    const std::vector<float> whole = sequence.run(table(), 0, length, 1);
    EXPECT_TRUE(same_bits(whole, elsewhere.run(table(), 0, length, 3)));
    const std::size_t width = static_cast<std::size_t>(c.heads * c.head_dim);
    for (i64 p = 0; p < length; ++p) {
      const std::vector<float> row(
          whole.begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(p) * width),
          whole.begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(p + 1) * width));
      ASSERT_TRUE(same_bits(elsewhere.run(table(), p, p + 1, 1), row)) << "position " << p;
    }
    for (const i64 chunk : {2, 3, 7, 64, 100}) {
      std::vector<float> pieces;
      for (i64 p = 0; p < length; p += chunk) {
        const std::vector<float> part = sequence.run(table(), p, std::min(p + chunk, length), 2);
        pieces.insert(pieces.end(), part.begin(), part.end());
      }
      EXPECT_TRUE(same_bits(pieces, whole)) << "chunk " << chunk;
    }
  }
}

TEST_P(Kernels, AttentionOverSeveralSequences) {
  // Two sequences in one call, through a shared cache: each as if alone.
  const AttentionCase c{4, 2, 16, 16, DType::f32, 0, 0};
  const Sequence one(table(), c, 90, 1);
  const std::vector<float> a = one.run(table(), 80, 90, 1);
  const std::vector<float> b = one.run(table(), 40, 41, 1);
  KvCache cache{nullptr, nullptr, DType::f32, 2, 16, 16};
  std::vector<std::byte> k(cache.block_bytes() * 8);
  std::vector<std::byte> v(k.size());
  cache.k = k.data();
  cache.v = v.data();
  std::vector<i64> slots;
  for (i64 p = 0; p < 90; ++p) slots.push_back(16 + p);
  slots[3] = -1;  // skipped, then written on its own
  table().kv_write(cache, one.keys.data(), 32, one.values.data(), 32, slots.data(), 90);
  const i64 slot = 19;
  table().kv_write(cache, one.keys.data() + 96, 32, one.values.data() + 96, 32, &slot, 1);
  const std::vector<std::int32_t> blocks{1, 2, 3, 4, 5, 6};
  const AttentionSequence sequences[] = {{blocks.data(), 1, 10, 80}, {blocks.data(), 0, 1, 40}};
  std::vector<float> q(one.queries.begin() + 40 * 64, one.queries.begin() + 41 * 64);
  q.insert(q.end(), one.queries.begin() + 80 * 64, one.queries.begin() + 90 * 64);
  std::vector<float> out(11 * 64);
  Attention op{.q = q.data(),
               .q_stride = 64,
               .out = out.data(),
               .out_stride = 64,
               .heads = 4,
               .scale = 0.25f,
               .cache = cache,
               .sequences = sequences};
  WorkerPool pool(2);
  Workspace workspace(2, 16);
  attention(table(), pool, workspace, op);
  EXPECT_TRUE(same_bits({out.begin(), out.begin() + 64}, b));
  EXPECT_TRUE(same_bits({out.begin() + 64, out.end()}, a));
}

TEST_P(Kernels, KvWriteRoundsLikeTensor) {
  std::vector<float> x = random_floats(24, 30, 100);
  x[0] = std::numeric_limits<float>::quiet_NaN();
  x[1] = std::numeric_limits<float>::infinity();
  x[2] = 1e-7f;
  x[3] = 65519.9f;
  x[4] = 65520.0f;
  x[5] = -3e-8f;
  x[6] = 3.3e38f;
  for (const DType type : {DType::f16, DType::bf16}) {
    KvCache cache{nullptr, nullptr, type, 1, 12, 2};
    std::vector<std::byte> k(cache.block_bytes());
    std::vector<std::byte> v(k.size());
    cache.k = k.data();
    cache.v = v.data();
    const i64 slots[] = {0, 1};
    table().kv_write(cache, x.data(), 12, x.data(), 12, slots, 2);
    EXPECT_EQ(k, v);
    for (std::size_t i = 0; i < 24; ++i) {
      std::uint16_t bits;
      std::memcpy(&bits, k.data() + 2 * i, 2);
      const float stored = type == DType::f16 ? f16_to_f32(bits) : bf16_to_f32(bits);
      const float expected = type == DType::f16 ? f16_to_f32(f32_to_f16(x[i])) : bf16_to_f32(f32_to_bf16(x[i]));
      if (std::isnan(expected)) {
        EXPECT_TRUE(std::isnan(stored));
      } else {
        EXPECT_EQ(stored, expected) << x[i];
      }
    }
  }
}

}  // namespace
}  // namespace xgen::kernels
