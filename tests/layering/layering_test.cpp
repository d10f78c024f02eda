// Reads the include lines under src/ and fails when a room includes one that CMakeLists.txt does not let it use.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <sstream>
#include <string>

namespace {

namespace fs = std::filesystem;
using Rooms = std::map<std::string, std::set<std::string>>;

std::string read(const fs::path& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

// From the xgen_room(NAME USES a b LIBS …) lines.
Rooms allowed() {
  Rooms rooms;
  const std::string text = read(fs::path(XGEN_SOURCE_DIR) / "CMakeLists.txt");
  const std::regex line(R"(\nxgen_room\((\w+)([^)]*)\))");
  for (auto it = std::sregex_iterator(text.begin(), text.end(), line); it != std::sregex_iterator(); ++it) {
    std::set<std::string>& uses = rooms[(*it)[1]];
    uses.insert((*it)[1]);
    std::istringstream words((*it)[2]);
    bool listing = false;
    for (std::string word; words >> word;) {
      if (word == "USES" || word == "LIBS") {
        listing = word == "USES";
      } else if (listing) {
        uses.insert(word);
      }
    }
  }
  return rooms;
}

TEST(Layering, RoomsIncludeOnlyWhatTheyMayUse) {
  const Rooms rooms = allowed();
  ASSERT_GE(rooms.size(), 14u);
  const std::regex include(R"(^\s*#\s*include\s*"([^"/]+)/[^"]*")");
  int files = 0;
  for (const auto& entry : fs::recursive_directory_iterator(fs::path(XGEN_SOURCE_DIR) / "src")) {
    const std::string extension = entry.path().extension().string();
    if (extension != ".h" && extension != ".cpp" && extension != ".cu" && extension != ".inc") continue;
    const std::string room = fs::relative(entry.path(), fs::path(XGEN_SOURCE_DIR) / "src").begin()->string();
    if (entry.path().parent_path() == fs::path(XGEN_SOURCE_DIR) / "src") continue;  // main.cpp may use everything
    ASSERT_TRUE(rooms.contains(room)) << entry.path() << " is in no room of CMakeLists.txt";
    ++files;
    std::istringstream lines(read(entry.path()));
    for (std::string line; std::getline(lines, line);) {
      std::smatch match;
      if (!std::regex_search(line, match, include)) continue;
      EXPECT_TRUE(rooms.at(room).contains(match[1]))
          << entry.path() << ": " << room << " may not use " << match[1] << ": " << line;
    }
  }
  EXPECT_GT(files, 20);
}

TEST(Layering, NoCyclesAndOnlyKnownRooms) {
  const Rooms rooms = allowed();
  std::map<std::string, int> state;  // 1 = on the path, 2 = done
  const auto visit = [&](const auto& self, const std::string& room) -> void {
    ASSERT_TRUE(rooms.contains(room)) << room;
    ASSERT_NE(state[room], 1) << "a cycle through " << room;
    if (state[room] == 2) return;
    state[room] = 1;
    for (const std::string& other : rooms.at(room)) {
      if (other != room) self(self, other);
    }
    state[room] = 2;
  };
  for (const auto& [room, uses] : rooms) visit(visit, room);
}

// Heavy or outward-facing libraries stay in the rooms that exist for them, and a header that includes Boost stays
// inside its room (base/json.h is the one exception: it is for .cpp files).
TEST(Layering, LibrariesStayInTheirRooms) {
  const std::map<std::string, std::set<std::string>> homes = {
      {"boost/asio", {"http"}},
      {"boost/beast", {"http"}},
      {"openssl/", {"http", "sources", "server"}},
      {"boost/json", {"base", "sources", "text", "weights", "api", "remote", "client", "server"}},
      {"yaml-cpp", {"config", "import"}},
      {"pcre2", {"text"}},
      {"utf8proc", {"text"}},
      {"CLI/", {}}};
  const fs::path src = fs::path(XGEN_SOURCE_DIR) / "src";
  std::set<std::string> heavy = {"base/json.h"};  // headers that include Boost
  for (const auto& entry : fs::recursive_directory_iterator(src)) {
    if (!entry.is_regular_file() || entry.path().parent_path() == src) continue;
    const fs::path relative = fs::relative(entry.path(), src);
    const std::string room = relative.begin()->string();
    std::istringstream lines(read(entry.path()));
    for (std::string line; std::getline(lines, line);) {
      if (!line.starts_with("#include <")) continue;
      for (const auto& [library, rooms] : homes) {
        if (!line.starts_with("#include <" + library)) continue;
        EXPECT_TRUE(rooms.contains(room)) << relative << ": " << line;
        if (library.starts_with("boost/") && relative.extension() == ".h") heavy.insert(relative.string());
      }
    }
  }
  for (const auto& entry : fs::recursive_directory_iterator(src)) {
    if (!entry.is_regular_file()) continue;
    const fs::path relative = fs::relative(entry.path(), src);
    std::istringstream lines(read(entry.path()));
    for (std::string line; std::getline(lines, line);) {
      for (const std::string& header : heavy) {
        if (line != "#include \"" + header + "\"") continue;
        const bool same_room = header.substr(0, header.find('/')) == relative.begin()->string();
        EXPECT_TRUE(relative.extension() == ".cpp" || same_room) << relative << " passes on " << header;
        EXPECT_TRUE(same_room || header == "base/json.h") << relative << " includes another room's " << header;
      }
    }
  }
}

}  // namespace
