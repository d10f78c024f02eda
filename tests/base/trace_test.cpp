#include "base/trace.h"

#include <gtest/gtest.h>

namespace xgen::trace {
namespace {

constexpr const char* kTrace = "0af7651916cd43dd8448eb211c80319c";
constexpr const char* kParent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

TEST(Trace, AContextIsReadAndWritten) {
  const Context context = parse(kParent, "vendor=1");
  EXPECT_EQ(context.trace_id, kTrace);
  EXPECT_EQ(context.span_id, "b7ad6b7169203331");
  EXPECT_TRUE(context.sampled);
  EXPECT_EQ(context.state, "vendor=1");
  EXPECT_EQ(context.parent(), kParent);
  EXPECT_FALSE(parse("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00", "").sampled);
  EXPECT_FALSE(parse("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-fe", "").sampled);
  EXPECT_TRUE(parse("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-ff", "").sampled);
  // A later version may have more.
  EXPECT_TRUE(parse("cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-what", ""));
}

TEST(Trace, WhatIsMalformedIsNone) {
  for (const char* each : {
           "",
           "00",
           "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
           "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
           "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
           "00-00000000000000000000000000000000-b7ad6b7169203331-01",
           "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
           "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
           "00-0af7651916cd43dd8448eb211c80319c_b7ad6b7169203331-01",
           "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0x",
           "cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01what",
       })
    EXPECT_FALSE(parse(each, "")) << each;
}

TEST(Trace, AChildStaysInTheTrace) {
  const Context parent = parse(kParent, "a=b");
  const Context child = child_of(parent);
  EXPECT_EQ(child.trace_id, kTrace);
  EXPECT_NE(child.span_id, parent.span_id);
  EXPECT_EQ(child.span_id.size(), 16u);
  EXPECT_TRUE(child.sampled);
  EXPECT_EQ(child.state, "a=b");
  const Context first = child_of({});
  EXPECT_EQ(first.trace_id.size(), 32u);
  EXPECT_TRUE(parse(first.parent(), ""));
  EXPECT_NE(child_of({}).trace_id, first.trace_id);
}

}  // namespace
}  // namespace xgen::trace
