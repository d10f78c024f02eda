#include "client/chat.h"

#include <gtest/gtest.h>

namespace xgen::client {
namespace {

TEST(Conversation, HoldsWhatWasSaid) {
  Conversation talk("be brief");
  talk.ask("hi \"there\"\n");
  talk.answered("hello");
  talk.ask("and?");
  EXPECT_EQ(talk.messages(), R"([{"role":"system","content":"be brief"},{"role":"user","content":"hi \"there\"\n"},)"
                             R"({"role":"assistant","content":"hello"},{"role":"user","content":"and?"}])");
  talk.answered("");
  EXPECT_EQ(talk.messages().find("and?"), std::string::npos) << "what was not answered may be asked again";
  talk.clear();
  talk.set_system("");
  EXPECT_EQ(talk.messages(), "[]");
}

TEST(Conversation, IsValidUtf8WhateverCameIn) {
  Conversation talk("");
  talk.ask("a\xff");
  EXPECT_EQ(talk.messages(), "[{\"role\":\"user\",\"content\":\"a\xef\xbf\xbd\"}]");
}

TEST(ForTerminal, TakesOutWhatATerminalObeys) {
  EXPECT_EQ(for_terminal("a\x1b[31mb\a\r\n\tc\x7f"), "a[31mb\n\tc");
  EXPECT_EQ(for_terminal("\xc2\x9b"
                         "2J\xc2\xa0\xea\xb0\x80"),
            "2J\xc2\xa0\xea\xb0\x80")
      << "U+009B is CSI too";
  EXPECT_EQ(for_terminal("x\xc2"), "x\xef\xbf\xbd");
}

}  // namespace
}  // namespace xgen::client
