// Sources: models from the Hugging Face Hub and from S3, found in a cache on disk or downloaded into it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <stop_token>
#include <string>
#include <string_view>

#include "base/model_source.h"
#include "base/result.h"
#include "sources/cache.h"
#include "sources/settings.h"

namespace xgen::sources {

// A model that is on disk.
struct Located {
  std::string path;     // a folder or .gguf file, for open_files()
  std::string version;  // commit of the Hub, or what stands for it
};

struct Pulled {
  Located located;
  std::size_t files = 0;
  std::uint64_t bytes = 0;       // of all files
  std::uint64_t downloaded = 0;  // bytes that were not there before
};

struct Progress {
  std::uint64_t done = 0;   // bytes of what has to be downloaded
  std::uint64_t total = 0;  // 0: not known yet
  std::string file;         // what is downloaded now
  bool waiting = false;     // for another process that downloads it
};
using OnProgress = std::function<void(const Progress&)>;

// Thread-safe: several models may be downloaded at once, each on the thread that calls.
class Sources {
 public:
  explicit Sources(Settings settings);
  ~Sources();
  Sources(const Sources&) = delete;
  Sources& operator=(const Sources&) = delete;

  // What is in the cache, without the network. Errors: not_found naming the source and what is missing;
  // invalid_argument if the source itself is at fault.
  Result<Located> locate(std::string_view source) const;

  // Asks what the revision is now and downloads what the cache lacks of it. Errors: of the Hub or S3 as they say it
  // (not_found, unauthenticated, permission_denied, overloaded), unavailable (network, disk, digests), cancelled. What
  // has come so far is kept, and taken up by the next try.
  Result<Pulled> pull(std::string_view source, const OnProgress& progress, const std::stop_token& stop);

  // What serving does: locate(), and pull() only if something is missing.
  Result<Located> fetch(std::string_view source, const OnProgress& progress, const std::stop_token& stop);

  // What is in the cache, as a text that changes with it; empty if it is not there. What this process itself fetched
  // because it was not there counts as before.
  std::string version(std::string_view source) const;
  // Whether pull() would ask the network at all. Errors: unavailable, naming what forbids it.
  Status may_pull(std::string_view source) const;
  // Where its files are or would be put.
  Result<std::string> folder(std::string_view source) const;

 private:
  struct Plan;
  http::Client& client();
  CacheFolder cache_of(const RemoteSource& source) const;
  std::optional<std::string> snapshot_of(const RemoteSource& source) const;
  Result<Plan> plan(const RemoteSource& source, const std::stop_token& stop);
  Result<Pulled> download(Plan plan, const OnProgress& progress, const std::stop_token& stop);

  const Settings settings_;
  mutable std::mutex mutex_;
  std::unique_ptr<http::Client> client_;        // made when it is needed
  std::map<std::string, std::string> fetched_;  // source -> version that this process fetched when nothing was there
};

}  // namespace xgen::sources
