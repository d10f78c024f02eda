#include "base/split_name.h"

#include <gtest/gtest.h>

namespace xgen {
namespace {

using Names = std::vector<std::string>;

TEST(SplitName, ThePartsOfAName) {
  const auto part = split_name("x/a-b-00002-of-00010.gguf");
  ASSERT_TRUE(part);
  EXPECT_EQ(part->stem, "x/a-b");
  EXPECT_EQ(part->number, 2);
  EXPECT_EQ(part->count, 10);
  EXPECT_EQ(part->ending, ".gguf");
}

TEST(SplitName, AllParts) {
  EXPECT_EQ(all_parts("x/a-00002-of-00002.gguf"), (Names{"x/a-00001-of-00002.gguf", "x/a-00002-of-00002.gguf"}));
  EXPECT_EQ(all_parts("m-00010-of-00010.safetensors").size(), 10u);
  EXPECT_EQ(all_parts("m-00010-of-00010.safetensors")[8], "m-00009-of-00010.safetensors");
}

TEST(SplitName, OtherNamesAreNoParts) {
  for (const char* name : {"", "a", "a.gguf", "a-00003-of-00002.gguf", "a-00000-of-00002.gguf", "a-0001-of-0002.gguf",
                           "a-00001-of-99999.gguf", "-00001-of-00002.gguf", "a-00001-of-00002", "a-0000x-of-00002.gguf",
                           "a-00001_of-00002.gguf", "a+00001-of-00002.gguf"}) {
    EXPECT_FALSE(split_name(name)) << name;
    EXPECT_EQ(all_parts(name), Names{name});
  }
}

}  // namespace
}  // namespace xgen
