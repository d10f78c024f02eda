// The cache on disk: what counts as complete, what processes do to each other, and that nothing leaves it.
#include "sources/cache.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <thread>

#include "sources/part_file.h"
#include "sources/sources.h"

namespace xgen::sources {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

const std::string kCommit = "0123456789abcdef0123456789abcdef01234567";

class CacheTest : public testing::Test {
 protected:
  CacheTest() : root_(fs::path(testing::TempDir()) / ("xgen_cache_" + std::to_string(::getpid()))) {
    fs::remove_all(root_);
    fs::create_directories(root_);
  }
  ~CacheTest() override { fs::remove_all(root_); }

  static std::string read(const fs::path& path) {
    std::ifstream in(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }
  static void write(const fs::path& path, const std::string& text) {
    fs::create_directories(path.parent_path());
    std::ofstream(path, std::ios::binary) << text;
  }
  CacheFolder cache() const { return {root_.string(), "models--org--repo"}; }
  void add(const std::string& file, const std::string& text = "x") {
    write(root_ / "models--org--repo/snapshots" / kCommit / file, text);
  }

  const fs::path root_;
};

TEST_F(CacheTest, RefsMayHaveSlashesAndAreReplacedAsAWhole) {
  CacheFolder folder = cache();
  EXPECT_FALSE(folder.ref("main"));
  ASSERT_TRUE(folder.set_ref("main", kCommit));
  ASSERT_TRUE(folder.set_ref("feature/x", kCommit));
  ASSERT_TRUE(folder.set_ref("refs/pr/1", kCommit));
  EXPECT_EQ(folder.ref("main"), kCommit);
  EXPECT_EQ(folder.ref("feature/x"), kCommit);
  EXPECT_EQ(read(fs::path(folder.path()) / "refs/refs/pr/1"), kCommit);
  EXPECT_EQ(std::distance(fs::directory_iterator(fs::path(folder.path()) / "refs/feature"), {}), 1);
  // What a crash or a stranger may have left there.
  write(fs::path(folder.path()) / "refs/empty", "");
  write(fs::path(folder.path()) / "refs/evil", "../../../etc");
  EXPECT_FALSE(folder.ref("empty"));
  EXPECT_FALSE(folder.ref("evil"));
  EXPECT_FALSE(folder.ref("../refs/main"));
}

TEST_F(CacheTest, LinksLeadToBlobsAndNeverThroughOtherLinks) {
  CacheFolder folder = cache();
  ASSERT_TRUE(folder.prepare());
  write(folder.blob_path("b1"), "one");
  ASSERT_TRUE(folder.link(kCommit, "config.json", "b1"));
  ASSERT_TRUE(folder.link(kCommit, "a/b/c.gguf", "b1"));
  ASSERT_TRUE(folder.link(kCommit, "a/b/c.gguf", "b1"));
  EXPECT_EQ(read(folder.snapshot_path(kCommit) + "/a/b/c.gguf"), "one");
  EXPECT_EQ(fs::read_symlink(folder.snapshot_path(kCommit) + "/a/b/c.gguf"), "../../../../blobs/b1");
  // Another content takes the name over.
  write(folder.blob_path("b2"), "two");
  ASSERT_TRUE(folder.link(kCommit, "config.json", "b2"));
  EXPECT_EQ(read(folder.snapshot_path(kCommit) + "/config.json"), "two");

  const fs::path outside = root_ / "outside";
  fs::create_directories(outside);
  fs::create_symlink(outside, folder.snapshot_path(kCommit) + "/trap");
  EXPECT_FALSE(folder.link(kCommit, "trap/file", "b1"));
  for (const char* name : {"../x", "/x", "a/../../x", "", "a//b", "config.json/x"})
    EXPECT_FALSE(folder.link(kCommit, name, "b1")) << name;
  EXPECT_TRUE(fs::is_empty(outside));
}

TEST_F(CacheTest, ASnapshotIsServedOnlyWhenNothingIsMissing) {
  const CacheFolder folder = cache();
  const auto outcome = [&](const std::string& path = {}) -> std::string {
    const auto choice = choose_local(folder, kCommit, path, "hf://org/repo");
    return choice ? "open:" + choice->open : choice.error().message;
  };
  EXPECT_THAT(outcome(), HasSubstr("not in the cache"));
  add("config.json", "{}");
  EXPECT_THAT(outcome(), HasSubstr("not in the cache"));
  add("model.safetensors.index.json",
      R"({"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "odd.safetensors"}})");
  add("model-00001-of-00002.safetensors");
  EXPECT_THAT(outcome(), HasSubstr("not in the cache"));
  add("model-00002-of-00002.safetensors");
  EXPECT_THAT(outcome(), HasSubstr("'odd.safetensors' is not in the cache"));
  add("odd.safetensors");
  EXPECT_THAT(outcome(), HasSubstr("a tokenizer is not in the cache"));
  add("tokenizer.json");
  EXPECT_EQ(outcome(), "open:");

  EXPECT_THAT(outcome("m-00001-of-00002.gguf"), HasSubstr("not in the cache"));
  add("m-00001-of-00002.gguf");
  EXPECT_THAT(outcome("m-00001-of-00002.gguf"), HasSubstr("not in the cache"));
  add("m-00002-of-00002.gguf");
  EXPECT_EQ(outcome("m-00001-of-00002.gguf"), "open:m-00001-of-00002.gguf");
}

TEST_F(CacheTest, WhatHuggingfaceHubRecordedOfTheRepositoryCounts) {
  const CacheFolder folder = cache();
  add("config.json", "{}");
  add("model.safetensors", "12345");
  add("tokenizer.json", "{}");
  ASSERT_TRUE(choose_local(folder, kCommit, "", "x"));
  const auto record = [&](int weights) {
    write(
        fs::path(folder.path()) / "trees" / (kCommit + ".json"),
        R"({"format_version": 1, "files": {"config.json": {"size": 2, "blob_id": "a"}, "tokenizer.json": {"size": 2, "blob_id": "b"},
             "chat_template.jinja": {"size": 1, "blob_id": "c"}, "model.safetensors": {"size": )" +
            std::to_string(weights) + R"(, "blob_id": "d"}}})");
  };
  record(5);
  auto choice = choose_local(folder, kCommit, "", "x");
  ASSERT_FALSE(choice);
  EXPECT_THAT(choice.error().message, HasSubstr("'chat_template.jinja' is not in the cache"));
  add("chat_template.jinja");
  EXPECT_TRUE(choose_local(folder, kCommit, "", "x"));
  record(6);
  choice = choose_local(folder, kCommit, "", "x");
  ASSERT_FALSE(choice);
  EXPECT_THAT(choice.error().message, HasSubstr("'model.safetensors' is not in the cache"));
}

TEST_F(CacheTest, ALinkToNowhereIsNotThere) {
  CacheFolder folder = cache();
  ASSERT_TRUE(folder.prepare());
  add("config.json", "{}");
  add("tokenizer.json", "{}");
  ASSERT_TRUE(folder.link(kCommit, "model.safetensors", "gone"));
  EXPECT_FALSE(choose_local(folder, kCommit, "", "x"));
  write(folder.blob_path("gone"), "here");
  EXPECT_TRUE(choose_local(folder, kCommit, "", "x"));
}

TEST_F(CacheTest, OneAtATimeHoldsALock) {
  CacheFolder folder = cache();
  ASSERT_TRUE(folder.prepare());
  auto first = folder.lock("blob", {}, {});
  ASSERT_TRUE(first);
  std::atomic<int> waited{0};
  std::atomic<bool> got{false};
  std::thread other([&] {
    auto second = folder.lock("blob", {}, [&] { ++waited; });
    got = second.ok();
  });
  while (waited == 0) std::this_thread::yield();
  EXPECT_FALSE(got);
  // Removed while it is held, as file locks of other programs may be: the one who waits takes the new file.
  fs::remove(root_ / ".locks/models--org--repo/blob.lock");
  { const FileLock gone = *std::move(first); }
  other.join();
  EXPECT_TRUE(got);
  EXPECT_EQ(waited, 1);

  auto held = folder.lock("blob", {}, {});
  ASSERT_TRUE(held);
  std::stop_source stop;
  std::thread waiting([&] {
    const auto outcome = folder.lock("blob", stop.get_token(), [&] { stop.request_stop(); });
    EXPECT_FALSE(outcome);
    EXPECT_EQ(outcome.error().code, ErrorCode::cancelled);
  });
  waiting.join();
}

TEST_F(CacheTest, APartFileGoesOnWhereItWas) {
  const std::string path = (root_ / "part").string();
  {
    auto file = PartFile::open(path, 10, 4);
    ASSERT_TRUE(file) << file.error().message;
    EXPECT_EQ((*file)->chunks(), 3u);
    EXPECT_EQ((*file)->length(2), 2u);
    ASSERT_TRUE((*file)->write(0, "abcd"));
    ASSERT_TRUE((*file)->write(1, "e"));
    ASSERT_TRUE((*file)->write(2, "ij"));
    EXPECT_EQ((*file)->prefix(), 5u);
    EXPECT_EQ((*file)->total_done(), 7u);
    EXPECT_FALSE((*file)->write(2, "k"));  // more than its part has
  }
  {
    auto file = PartFile::open(path, 10, 4);  // as after a kill -9
    ASSERT_TRUE(file);
    EXPECT_EQ((*file)->total_done(), 7u);
    ASSERT_TRUE((*file)->write(1, "fgh"));
    EXPECT_EQ((*file)->prefix(), 10u);
    char all[10];
    ASSERT_TRUE((*file)->read(0, all, sizeof all));
    EXPECT_EQ(std::string(all, sizeof all), "abcdefghij");
    ASSERT_TRUE((*file)->publish((root_ / "blob").string()));
  }
  EXPECT_EQ(read(root_ / "blob"), "abcdefghij");
  EXPECT_FALSE(fs::exists(path));
}

TEST_F(CacheTest, APartFileOfAnotherShapeBeginsAnew) {
  const std::string path = (root_ / "part").string();
  for (const std::string& before : {std::string(), std::string("rubbish"), std::string(5000, 'x')}) {
    write(path, before);
    auto file = PartFile::open(path, 10, 4);
    ASSERT_TRUE(file);
    EXPECT_EQ((*file)->total_done(), 0u) << before.size();
    ASSERT_TRUE((*file)->write(0, "abcd"));
    auto other_chunks = PartFile::open(path, 10, 5);
    ASSERT_TRUE(other_chunks);
    EXPECT_EQ((*other_chunks)->total_done(), 0u);
  }
  // Killed when everything but the name was done.
  write(path, "abcdefghij");
  auto whole = PartFile::open(path, 10, 4);
  ASSERT_TRUE(whole);
  EXPECT_EQ((*whole)->total_done(), 10u);
  // Not somebody else's file.
  fs::remove(path);
  write(root_ / "victim", "precious");
  fs::create_symlink(root_ / "victim", path);
  EXPECT_FALSE(PartFile::open(path, 10, 4));
  EXPECT_EQ(read(root_ / "victim"), "precious");
}

TEST_F(CacheTest, AFileThatTheSystemHasNoRoomForIsAnError) {
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const rlimit small{1 << 16, before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const auto file = PartFile::open((root_ / "part").string(), 1 << 20, 1 << 18);
  ::setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, handler);
  ASSERT_FALSE(file);
  EXPECT_THAT(file.error().message, HasSubstr((root_ / "part").string() + ": File too large"));
}

TEST_F(CacheTest, SourcesAreFoundWithoutTheNetwork) {
  Settings settings;
  settings.hub.cache = root_.string();
  settings.hub.endpoint = "http://127.0.0.1:1";
  settings.hub.offline = true;
  settings.s3.cache = (root_ / "s3").string();
  Sources sources(settings);
  add("config.json", "{}");
  add("model.safetensors");
  add("tokenizer.json", "{}");
  const auto by_branch = sources.locate("hf://org/repo");
  ASSERT_FALSE(by_branch);
  EXPECT_EQ(by_branch.error().code, ErrorCode::not_found);
  EXPECT_THAT(sources.pull("hf://org/repo", {}, {}).error().message, HasSubstr("HF_HUB_OFFLINE is set"));
  const auto by_commit = sources.locate("hf://org/repo@" + kCommit);
  ASSERT_TRUE(by_commit) << by_commit.error().message;
  EXPECT_EQ(by_commit->version, kCommit);
  ASSERT_TRUE(cache().set_ref("main", kCommit));
  EXPECT_EQ(sources.locate("hf://org/repo")->path, cache().snapshot_path(kCommit));
  EXPECT_TRUE(sources.pull("hf://org/repo", {}, {}));
  EXPECT_EQ(sources.version("hf://org/repo"), kCommit);
  EXPECT_EQ(sources.version("hf://org/other"), "");
  EXPECT_FALSE(sources.locate("s3://bucket/x"));
}

}  // namespace
}  // namespace xgen::sources
