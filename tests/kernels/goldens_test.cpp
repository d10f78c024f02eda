// Kernels against numbers that other implementations made: the gguf package's dequantisation, and op-level goldens of
// vLLM / PyTorch where the shared data is there.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "base/worker_pool.h"
#include "kernels/kernel_table.h"
#include "kernels/ops.h"

namespace xgen::kernels {
namespace {

using i64 = std::int64_t;

std::string read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

TEST(QuantGoldens, EveryFormatDecodesExactly) {
  for (const DType type : {DType::q4_0, DType::q4_1, DType::q5_0, DType::q5_1, DType::q8_0, DType::q2_k, DType::q3_k,
                           DType::q4_k, DType::q5_k, DType::q6_k}) {
    const std::string stem = std::string(XGEN_SOURCE_DIR) + "/tests/golden/quant/" + std::string(dtype_info(type).name);
    const std::string blocks = read_file(stem + ".q");
    const std::string values = read_file(stem + ".f32");
    const auto n = static_cast<i64>(values.size() / sizeof(float));
    const TensorView row{type, make_shape({1, n}), reinterpret_cast<const std::byte*>(blocks.data())};
    ASSERT_GT(n, 0) << stem;
    ASSERT_EQ(row.bytes(), blocks.size());
    std::vector<float> expected(static_cast<std::size_t>(n));
    std::memcpy(expected.data(), values.data(), values.size());
    for (const KernelTable* table : available_kernels()) {
      std::vector<float> out(expected.size());
      table->dequantise_row(row, 0, out.data());
      for (std::size_t i = 0; i < out.size(); ++i) {
        ASSERT_EQ(out[i], expected[i]) << table->name << " " << dtype_info(type).name << " element " << i;
      }
    }
  }
}

// A .npy file (version 1, C order) of f4 or i8, as floats; empty where it is neither.
std::vector<float> read_npy(const std::string& path) {
  const std::string file = read_file(path);
  std::uint16_t header = 0;
  if (file.size() < 10 || file.compare(1, 5, "NUMPY") != 0) return {};
  std::memcpy(&header, file.data() + 8, 2);
  const std::string text = file.substr(10, header);
  const char* data = file.data() + 10 + header;
  const std::size_t bytes = file.size() - 10 - header;
  std::vector<float> out;
  if (text.find("<f4") != std::string::npos) {
    out.resize(bytes / 4);
    std::memcpy(out.data(), data, out.size() * 4);
  } else if (text.find("<i8") != std::string::npos) {
    for (std::size_t i = 0; i + 8 <= bytes; i += 8) {
      std::int64_t v = 0;
      std::memcpy(&v, data + i, 8);
      out.push_back(static_cast<float>(v));
    }
  }
  return out;
}

class OpGoldens : public testing::TestWithParam<const KernelTable*> {
 protected:
  void SetUp() override {
    if (!std::filesystem::exists(root_)) GTEST_SKIP() << root_ << " is not there";
  }
  const KernelTable& table() const { return *GetParam(); }
  std::vector<float> load(const std::string& op, const std::string& name) const {
    return read_npy(root_ + op + "/" + name + ".npy");
  }
  static void expect_near(const std::vector<float>& got, const std::vector<float>& expected, float tolerance) {
    ASSERT_FALSE(expected.empty());
    ASSERT_EQ(got.size(), expected.size());
    for (std::size_t i = 0; i < got.size(); ++i) {
      ASSERT_NEAR(got[i], expected[i], tolerance * (1 + std::abs(expected[i]))) << i;
    }
  }
  // Plain RoPE, "neox" layout, tables made in double precision; one table row per row of x.
  void rotate(std::vector<float>& x, const std::vector<float>& positions, int heads, int head_dim, int rotary,
              double base) const {
    std::vector<float> cos;
    std::vector<float> sin;
    for (const float p : positions) {
      for (int i = 0; i < rotary / 2; ++i) {
        const double angle = static_cast<double>(p) * std::pow(base, -2.0 * i / rotary);
        cos.push_back(static_cast<float>(std::cos(angle)));
        sin.push_back(static_cast<float>(std::sin(angle)));
      }
    }
    Rope op;
    op.x = x.data();
    op.stride = i64{heads} * head_dim;
    op.m = static_cast<i64>(positions.size());
    op.heads = heads;
    op.head_dim = head_dim;
    op.rotary_dim = rotary;
    op.cos = cos.data();
    op.sin = sin.data();
    table().rope(op, 0, op.m);
  }

 private:
  std::string root_ = std::string(XGEN_SOURCE_DIR) + "/../shared/data/goldens-ops-vllm.cpp/";
};

INSTANTIATE_TEST_SUITE_P(Isa, OpGoldens, testing::ValuesIn(available_kernels()),
                         [](const auto& test) { return std::string(test.param->name); });

TEST_P(OpGoldens, RmsNorm) {
  const std::vector<float> x = load("rmsnorm_f32_8x128", "x");
  const std::vector<float> weight = load("rmsnorm_f32_8x128", "weight");
  ASSERT_EQ(x.size(), 8u * 128u);
  std::vector<float> out(x.size());
  table().rms_norm(x.data(), 128, weight.data(), 1e-6f, 8, 128, out.data(), 128);
  expect_near(out, load("rmsnorm_f32_8x128", "out"), 1e-5f);
}

TEST_P(OpGoldens, Rope) {
  const std::vector<float> positions = load("rope_f32_pos_short", "positions");
  ASSERT_EQ(positions.size(), 8u);
  std::vector<float> q = load("rope_f32_pos_short", "q_in");
  std::vector<float> k = load("rope_f32_pos_short", "k_in");
  rotate(q, positions, 4, 64, 32, 10000);
  rotate(k, positions, 2, 64, 32, 10000);
  expect_near(q, load("rope_f32_pos_short", "q_out"), 1e-5f);
  expect_near(k, load("rope_f32_pos_short", "k_out"), 1e-5f);
}

TEST_P(OpGoldens, Attention) {
  // Per-head norms (their weights are stored minus one), RoPE, paged causal attention.
  struct Case {
    std::string name;
    int rows, head_dim, rotary;
    double base;
  };
  for (const Case& c :
       {Case{"dense_attention_f32_small", 6, 8, 4, 1e4}, Case{"dense_attention_f32_realdims", 9, 256, 64, 1e7}}) {
    const i64 rows = c.rows;
    const i64 hd = c.head_dim;
    const auto normed = [&](const std::string& name, i64 heads) {
      std::vector<float> x = load(c.name, name);
      std::vector<float> weight = load(c.name, name + "_norm_weight");
      for (float& w : weight) w += 1;
      table().rms_norm(x.data(), hd, weight.data(), 1e-6f, rows * heads, hd, x.data(), hd);
      rotate(x, load(c.name, "positions"), static_cast<int>(heads), c.head_dim, c.rotary, c.base);
      return x;
    };
    const std::vector<float> q = normed("q", 4);
    const std::vector<float> k = normed("k", 2);
    const std::vector<float> v = load(c.name, "v");
    ASSERT_EQ(q.size(), static_cast<std::size_t>(rows * 4 * hd));
    KvCache cache{nullptr, nullptr, DType::f32, 2, c.head_dim, 4};
    std::vector<std::byte> keys(cache.block_bytes() * 3);
    std::vector<std::byte> values(keys.size());
    cache.k = keys.data();
    cache.v = values.data();
    std::vector<i64> slots;
    const std::vector<std::int32_t> blocks{2, 0, 1};
    for (i64 p = 0; p < rows; ++p) slots.push_back(blocks[static_cast<std::size_t>(p / 4)] * 4 + p % 4);
    table().kv_write(cache, k.data(), 2 * hd, v.data(), 2 * hd, slots.data(), rows);
    const AttentionSequence sequence{blocks.data(), 0, rows, 0};
    std::vector<float> out(q.size());
    Attention op;
    op.q = q.data();
    op.q_stride = 4 * hd;
    op.out = out.data();
    op.out_stride = 4 * hd;
    op.heads = 4;
    op.scale = 1.0f / std::sqrt(static_cast<float>(hd));
    op.cache = cache;
    op.sequences = {&sequence, 1};
    WorkerPool pool(2);
    Workspace workspace(2, c.head_dim);
    attention(table(), pool, workspace, op);
    expect_near(out, load(c.name, "attn"), 2e-4f);
  }
}

}  // namespace
}  // namespace xgen::kernels
