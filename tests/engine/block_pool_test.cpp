#include "engine/block_pool.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>

namespace xgen::engine {
namespace {

std::vector<TokenId> tokens(std::initializer_list<TokenId> ids) { return ids; }

TEST(BlockPool, GivesEveryBlockOnce) {
  BlockPool pool(5, 4);
  std::vector<bool> seen(5);
  for (int i = 0; i < 5; ++i) {
    const BlockId block = pool.allocate();
    ASSERT_NE(block, kNoBlock);
    EXPECT_FALSE(seen[static_cast<std::size_t>(block)]);
    seen[static_cast<std::size_t>(block)] = true;
  }
  EXPECT_EQ(pool.allocate(), kNoBlock);
  EXPECT_EQ(pool.used(), 5);
  EXPECT_EQ(pool.check_integrity(), "");
}

TEST(BlockPool, FindsPublishedBlocksByTokensAndPrefix) {
  BlockPool pool(4, 2);
  const BlockId a = pool.allocate();
  const BlockId b = pool.allocate();
  EXPECT_EQ(pool.publish(a, kSharedRoot, tokens({1, 2})), a);
  EXPECT_EQ(pool.publish(b, pool.mark(a), tokens({3, 4})), b);
  EXPECT_EQ(pool.find(kSharedRoot, tokens({1, 2})), a);
  EXPECT_EQ(pool.find(pool.mark(a), tokens({3, 4})), b);
  EXPECT_EQ(pool.find(kSharedRoot, tokens({3, 4})), kNoBlock) << "the same tokens elsewhere are another prefix";
  EXPECT_EQ(pool.find(7, tokens({1, 2})), kNoBlock) << "another root";
  EXPECT_EQ(pool.find(kSharedRoot, tokens({2, 1})), kNoBlock);
}

TEST(BlockPool, PublishingTheSameContentReturnsTheFirstBlock) {
  BlockPool pool(4, 2);
  const BlockId a = pool.allocate();
  const BlockId b = pool.allocate();
  EXPECT_EQ(pool.publish(a, kSharedRoot, tokens({1, 2})), a);
  EXPECT_EQ(pool.publish(b, kSharedRoot, tokens({1, 2})), a);
  EXPECT_FALSE(pool.published(b));
  EXPECT_EQ(pool.check_integrity(), "");
}

TEST(BlockPool, CachedBlocksStayUntilTheyAreNeededAndGoOldestFirst) {
  BlockPool pool(3, 1);
  BlockId blocks[3];
  PrefixMark before = kSharedRoot;
  for (int i = 0; i < 3; ++i) {
    blocks[i] = pool.allocate();
    pool.publish(blocks[i], before, tokens({i}));
    before = pool.mark(blocks[i]);
  }
  for (int i = 2; i >= 0; --i) pool.release(blocks[i]);
  EXPECT_EQ(pool.available(), 3);
  EXPECT_EQ(pool.find(kSharedRoot, tokens({0})), blocks[0]);

  EXPECT_EQ(pool.allocate(), blocks[2]) << "the end of the prefix goes first";
  EXPECT_EQ(pool.find(pool.mark(blocks[1]), tokens({2})), kNoBlock);
  EXPECT_EQ(pool.find(kSharedRoot, tokens({0})), blocks[0]);
  pool.share(blocks[0]);
  EXPECT_EQ(pool.allocate(), blocks[1]);
  EXPECT_EQ(pool.allocate(), kNoBlock) << "a shared block is not evicted";
  EXPECT_EQ(pool.check_integrity(), "");
}

TEST(BlockPool, UncachedBlocksAreTakenBeforeCachedOnes) {
  BlockPool pool(2, 1);
  const BlockId a = pool.allocate();
  const BlockId b = pool.allocate();
  pool.publish(a, kSharedRoot, tokens({1}));
  pool.release(a);
  pool.release(b);
  EXPECT_EQ(pool.allocate(), b);
}

// A republished prefix gets a new mark: blocks that continued the evicted one can never be found under it.
TEST(BlockPool, MarksAreNeverUsedTwice) {
  BlockPool pool(2, 1);
  const BlockId a = pool.allocate();
  pool.publish(a, kSharedRoot, tokens({1}));
  const PrefixMark first = pool.mark(a);
  pool.release(a);
  EXPECT_EQ(pool.allocate(), 1);
  const BlockId again = pool.allocate();  // evicts
  EXPECT_EQ(again, a);
  pool.publish(again, kSharedRoot, tokens({1}));
  EXPECT_NE(pool.mark(again), first);
}

// Random traffic against a model of plain maps, with tokens so few that contents repeat all the time.
TEST(BlockPool, RandomTrafficAgainstAReference) {
  std::mt19937 random(7);
  for (int round = 0; round < 20; ++round) {
    const int size = 1 + static_cast<int>(random() % 24);
    BlockPool pool(size, 2);
    std::vector<BlockId> held;  // one entry per reference
    std::map<std::pair<PrefixMark, std::vector<TokenId>>, BlockId> published;
    for (int i = 0; i < 3000; ++i) {
      switch (random() % 4) {
        case 0: {
          const BlockId block = pool.allocate();
          ASSERT_EQ(block == kNoBlock,
                    std::set<BlockId>(held.begin(), held.end()).size() == static_cast<std::size_t>(size));
          if (block == kNoBlock) break;
          ASSERT_EQ(pool.ref_count(block), 1);
          for (auto it = published.begin(); it != published.end();)
            it = it->second == block ? published.erase(it) : std::next(it);
          held.push_back(block);
          break;
        }
        case 1: {
          if (held.empty()) break;
          const std::size_t at = random() % held.size();
          pool.release(held[at]);
          held.erase(held.begin() + static_cast<std::ptrdiff_t>(at));
          break;
        }
        case 2: {
          if (held.empty()) break;
          const BlockId block = held[random() % held.size()];
          if (pool.published(block)) break;
          const PrefixMark before = random() % 3;
          std::vector<TokenId> content = {static_cast<TokenId>(random() % 3), static_cast<TokenId>(random() % 3)};
          const BlockId same = pool.publish(block, before, content);
          const auto [it, fresh] = published.try_emplace({before, content}, block);
          ASSERT_EQ(same, it->second);
          ASSERT_EQ(fresh, same == block);
          break;
        }
        default: {
          const PrefixMark before = random() % 3;
          std::vector<TokenId> content = {static_cast<TokenId>(random() % 3), static_cast<TokenId>(random() % 3)};
          const auto it = published.find({before, content});
          const BlockId found = pool.find(before, content);
          ASSERT_EQ(found, it == published.end() ? kNoBlock : it->second);
          if (found != kNoBlock) {
            pool.share(found);
            held.push_back(found);
          }
        }
      }
      ASSERT_EQ(pool.check_integrity(), "");
      std::map<BlockId, int> refs;
      for (BlockId block : held) ++refs[block];
      ASSERT_EQ(pool.used(), static_cast<int>(refs.size()));
      for (const auto& [block, count] : refs) ASSERT_EQ(pool.ref_count(block), count);
    }
  }
}

}  // namespace
}  // namespace xgen::engine
