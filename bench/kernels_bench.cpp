// Kernels against this machine's ceilings: read bandwidth and FP32 multiply-add rate are measured first, then the
// products as a share of them. Usage: kernels_bench [--threads N] [--kernels NAME] [--type FORMAT]
// [--rows M] [--as-stored] [--quick] [--ceilings]
#include <immintrin.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "base/worker_pool.h"
#include "kernels/ops.h"

namespace {

using namespace xgen;
using i64 = std::int64_t;

double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// The shortest and the median of repeated runs of fn, in seconds: others may use the machine.
struct Times {
  double best;
  double median;
};
Times measure(double budget, const std::function<void()>& fn) {
  fn();
  std::vector<double> times;
  const double end = seconds() + budget;
  while (times.size() < 5 || (seconds() < end && times.size() < 1000)) {
    const double begin = seconds();
    fn();
    times.push_back(seconds() - begin);
  }
  std::sort(times.begin(), times.end());
  return {times.front(), times[times.size() / 2]};
}

struct Weights {
  std::vector<std::byte> storage;
  TensorView view;
};
Weights make_weights(DType type, i64 n, i64 k) {
  Weights w;
  w.view = {type, make_shape({n, k}), nullptr};
  w.storage.resize(w.view.bytes());
  w.view.data = w.storage.data();
  std::mt19937_64 random(1);
  for (std::size_t i = 0; i + 8 <= w.storage.size(); i += 8) {
    // 0x2 as the upper half of every other byte keeps every scale a small normal number.
    const std::uint64_t bits = (random() & 0x0fff0fff0fff0fffull) | 0x2000200020002000ull;
    std::memcpy(w.storage.data() + i, &bits, 8);
  }
  return w;
}

double read_bandwidth(WorkerPool& pool, double budget) {
  std::vector<float> memory(std::size_t{64} << 20);  // 256 MiB, beyond any cache
  for (std::size_t i = 0; i < memory.size(); ++i) memory[i] = static_cast<float>(i & 15);
  const std::size_t part = memory.size() / 64;
  const Times t = measure(budget, [&] {
    pool.run(64, [&](int p) {
      const float* x = memory.data() + static_cast<std::size_t>(p) * part;
      __m256 sum[8] = {};
      for (std::size_t i = 0; i < part; i += 64) {
        for (std::size_t j = 0; j < 8; ++j) sum[j] = _mm256_add_ps(sum[j], _mm256_loadu_ps(x + i + 8 * j));
      }
      for (__m256& s : sum) __asm__ volatile("" : "+x"(s));
    });
  });
  return static_cast<double>(memory.size() * sizeof(float)) / t.best;
}

// Multiply-adds per second with 12 accumulators, the inner loop of the wide product without its loads.
double fma_ceiling(WorkerPool& pool, double budget) {
  constexpr int kLoops = 1 << 20;
  const Times t = measure(budget, [&] {
    pool.run(pool.size(), [&](int) {
      __m256 a[12];
      for (__m256& v : a) v = _mm256_set1_ps(0.5f);
      __m256 x = _mm256_set1_ps(0.999f);
      for (int i = 0; i < kLoops; ++i) {
        for (__m256& v : a) v = _mm256_fmadd_ps(x, v, x);
      }
      for (__m256& v : a) __asm__ volatile("" : "+x"(v));
    });
  });
  return 8.0 * 12 * kLoops * pool.size() / t.best;
}

struct Shape2 {
  i64 n;
  i64 k;
};

}  // namespace

int main(int argc, char** argv) {
  int threads = 2;
  std::string name;
  std::string only_type;
  i64 only_rows = 0;
  double budget = 0.6;
  bool ceilings_only = false;
  bool as_stored = false;
  for (int i = 1; i < argc; ++i) {
    const std::string arg = argv[i];
    if (arg == "--threads" && i + 1 < argc) threads = std::max(1, std::atoi(argv[++i]));
    if (arg == "--kernels" && i + 1 < argc) name = argv[++i];
    if (arg == "--type" && i + 1 < argc) only_type = argv[++i];
    if (arg == "--rows" && i + 1 < argc) only_rows = std::atoi(argv[++i]);
    if (arg == "--quick") budget = 0.15;
    if (arg == "--as-stored") as_stored = true;
    if (arg == "--ceilings") ceilings_only = true;
  }
  const auto table = kernels::select_kernels(name);
  if (!table.ok()) {
    std::fprintf(stderr, "%s\n", table.error().message.c_str());
    return 1;
  }
  WorkerPool pool(threads);
  kernels::Workspace workspace(threads, 128);
  const double bandwidth = read_bandwidth(pool, budget);
  const double fma = fma_ceiling(pool, budget);
  std::printf("kernels %s, %d threads: read %.1f GB/s, FP32 multiply-adds %.1f G/s (%.0f GFLOP/s)\n",
              std::string((*table)->name).c_str(), threads, bandwidth / 1e9, fma / 1e9, 2 * fma / 1e9);
  if (ceilings_only) return 0;
  std::printf("%-5s %5s %6s %5s %10s %10s %8s %8s   share of the ceiling, best (median)\n", "type", "m", "n", "k",
              "best us", "median us", "GB/s", "GFLOP/s");

  const auto bench = [&](DType type, i64 m, Shape2 s) {
    if (!only_type.empty() && only_type != dtype_info(type).name) return;
    if (only_rows != 0 && only_rows != m) return;
    // For few rows: enough copies of the matrix that none stays in a cache, used in turn.
    const std::size_t bytes = TensorView{type, make_shape({s.n, s.k}), nullptr}.bytes();
    const i64 copies = m <= 4 ? static_cast<i64>((std::size_t{192} << 20) / bytes) + 1 : 1;
    const Weights w = make_weights(type, s.n * copies, s.k);
    const auto packed_bytes = as_stored ? 0 : static_cast<std::size_t>((*table)->packed_bytes(type, s.n, s.k));
    std::vector<std::byte> packed(packed_bytes * static_cast<std::size_t>(copies));
    const auto matrix = [&](i64 i) {
      return TensorView{type, make_shape({s.n, s.k}), w.view.data + static_cast<std::size_t>(i) * bytes};
    };
    for (i64 i = 0; i < copies && packed_bytes > 0; ++i)
      (*table)->pack(matrix(i), 0, s.n, packed.data() + static_cast<std::size_t>(i) * packed_bytes);
    std::vector<float> x(static_cast<std::size_t>(m * s.k));
    std::mt19937 random(2);
    std::normal_distribution<float> normal;
    for (float& v : x) v = normal(random);
    std::vector<float> y(static_cast<std::size_t>(m * s.n));
    i64 copy = 0;
    kernels::Matmul op;
    op.x = x.data();
    op.x_stride = s.k;
    op.y = y.data();
    op.y_stride = s.n;
    op.m = m;
    const Times t = measure(budget, [&] {
      op.weight = matrix(copy);
      if (packed_bytes > 0) op.packed = packed.data() + static_cast<std::size_t>(copy) * packed_bytes;
      copy = (copy + 1) % copies;
      kernels::matmul(**table, pool, workspace, op);
    });
    const double work = static_cast<double>(m * s.n * s.k);
    const double ideal = std::max(static_cast<double>(bytes) / bandwidth, work / fma);
    std::printf("%-5s %5lld %6lld %5lld %10.1f %10.1f %8.2f %8.1f   %3.0f%% (%.0f%%) of %s\n",
                std::string(dtype_info(type).name).c_str(), static_cast<long long>(m), static_cast<long long>(s.n),
                static_cast<long long>(s.k), t.best * 1e6, t.median * 1e6, static_cast<double>(bytes) / t.best / 1e9,
                2 * work / t.best / 1e9, 100 * ideal / t.best, 100 * ideal / t.median,
                ideal > work / fma ? "bandwidth" : "multiply-adds");
    std::fflush(stdout);
  };

  const std::vector<DType> formats{DType::q8_0, DType::q4_0, DType::q5_0, DType::q4_k,
                                   DType::q6_k, DType::f16,  DType::bf16, DType::f32};
  for (const DType type : formats) bench(type, 1, {8192, 2048});
  bench(DType::q8_0, 1, {2048, 8192});
  bench(DType::q8_0, 1, {896, 896 / 32 * 32});
  for (const i64 m : {2, 4, 8, 16, 64}) bench(DType::q8_0, m, {8192, 2048});
  for (const DType type : formats) bench(type, 512, {2048, 2048});
  bench(DType::q8_0, 512, {8192, 2048});
  bench(DType::q8_0, 512, {2048, 8192});
  bench(DType::q8_0, 512, {896, 4864});

  // Attention: one layer of 32 heads over 8 kv heads of 64, F16 cache, decode and prefill at 2048 positions.
  for (const i64 rows : {1, 512}) {
    if (!only_type.empty() || (only_rows != 0 && only_rows != rows)) continue;
    constexpr i64 kLength = 2048;
    kernels::KvCache cache{nullptr, nullptr, DType::f16, 8, 64, 16};
    std::vector<std::byte> k(cache.block_bytes() * (kLength / 16), std::byte{0x20});
    std::vector<std::byte> v = k;
    cache.k = k.data();
    cache.v = v.data();
    std::vector<std::int32_t> blocks;
    for (std::int32_t b = 0; b < kLength / 16; ++b) blocks.push_back(b);
    std::vector<float> q(static_cast<std::size_t>(rows) * 2048, 0.01f);
    std::vector<float> out(q.size());
    const kernels::AttentionSequence sequence{blocks.data(), 0, rows, kLength - rows};
    kernels::Attention op;
    op.q = q.data();
    op.q_stride = 2048;
    op.out = out.data();
    op.out_stride = 2048;
    op.heads = 32;
    op.scale = 0.125f;
    op.cache = cache;
    op.sequences = {&sequence, 1};
    const Times t = measure(budget, [&] { kernels::attention(**table, pool, workspace, op); });
    const double work =
        2.0 * 2048 * static_cast<double>(rows) * (static_cast<double>(kLength) - static_cast<double>(rows) / 2);
    std::printf("attention rows %lld at %lld positions: %.1f us (median %.1f), %.1f GFLOP/s, %.0f%% of multiply-adds\n",
                static_cast<long long>(rows), static_cast<long long>(kLength), t.best * 1e6, t.median * 1e6,
                2 * work / t.best / 1e9, 100 * work / fma / t.best);
  }
  return 0;
}
