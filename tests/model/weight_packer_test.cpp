#include "model/weight_packer.h"

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "base/worker_pool.h"
#include "kernels/kernel_table.h"
#include "tensor/tensor.h"

namespace xgen::model {
namespace {

TEST(WeightPacker, PacksAllPieceByPiece) {
  for (const kernels::KernelTable* kernels : kernels::available_kernels()) {
    constexpr std::int64_t kColumns = 2048;
    const std::int64_t rows[] = {5000, 7, 64};  // more than one piece; less than a panel
    std::vector<std::vector<std::byte>> data;
    std::vector<TensorView> views;
    for (const std::int64_t n : rows) {
      data.emplace_back(static_cast<std::size_t>(n * kColumns / 32 * 34), static_cast<std::byte>(n));
      views.push_back({DType::q8_0, make_shape({n, kColumns}), data.back().data()});
    }
    std::vector<float> plain(kColumns);
    views.push_back({DType::f32, make_shape({1, kColumns}), reinterpret_cast<const std::byte*>(plain.data())});
    const bool packs = kernels->packed_bytes(DType::q8_0, 1, kColumns) > 0;

    WeightPacker packer(*kernels, views);
    EXPECT_EQ(packer.more_bytes() > 0, packs);  // whole panels
    WorkerPool pool(2);
    for (int round = 0; round < 2; ++round) {
      EXPECT_EQ(packer.find(views[0]), nullptr);
      int pieces = 1;
      while (packer.advance(pool)) ++pieces;
      EXPECT_EQ(pieces, packs ? 8 : 1);  // 10.4 MiB of the first, and one each
      EXPECT_FALSE(packer.advance(pool));
      EXPECT_EQ(packer.find(views[3]), nullptr);
      for (std::size_t i = 0; i < 3; ++i) {
        const std::byte* const packed = packer.find(views[i]);
        ASSERT_EQ(packed != nullptr, packs);
        if (!packs) continue;
        std::vector<std::byte> expected(
            static_cast<std::size_t>(kernels->packed_bytes(DType::q8_0, rows[i], kColumns)));
        kernels->pack(views[i], 0, rows[i], expected.data());
        EXPECT_EQ(std::memcmp(packed, expected.data(), expected.size()), 0);
      }
      packer.clear();
    }
  }
}

}  // namespace
}  // namespace xgen::model
