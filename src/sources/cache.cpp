#include "sources/cache.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <mutex>
#include <set>
#include <system_error>
#include <utility>

#include "base/bytes.h"
#include "base/json.h"
#include "base/model_source.h"
#include "base/split_name.h"

namespace xgen::sources {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kMaxFiles = 100'000;  // of one snapshot
constexpr std::size_t kMaxDepth = 16;
constexpr std::size_t kMaxRefBytes = 256;
constexpr std::chrono::milliseconds kLockPoll{100};

class Fd {
 public:
  explicit Fd(int fd = -1) : fd_(fd) {}
  ~Fd() {
    if (fd_ >= 0) ::close(fd_);
  }
  Fd(const Fd&) = delete;
  Fd& operator=(const Fd&) = delete;
  Fd& operator=(Fd&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  int get() const { return fd_; }
  int release() { return std::exchange(fd_, -1); }

 private:
  int fd_;
};

// Unlike every other name of this and any other process that writes into the folder.
std::string temporary_name(std::string_view name) {
  static std::atomic<unsigned> counter{0};
  const auto now = std::chrono::steady_clock::now().time_since_epoch().count();
  return std::string(name.substr(0, 200)) + "." + std::to_string(::getpid()) + "-" + std::to_string(counter++) + "-" +
         std::to_string(now) + ".tmp";
}

Status make_folders(const std::string& path) {
  std::error_code error;
  fs::create_directories(path, error);
  if (error) return make_error(ErrorCode::unavailable, path + ": " + error.message());
  return {};
}

void list_into(std::vector<RemoteFile>& out, const fs::path& folder, const std::string& prefix, std::size_t depth) {
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end && out.size() < kMaxFiles;
       it.increment(error)) {
    std::error_code ignored;
    const std::string name = prefix + it->path().filename().string();
    if (it->is_directory(ignored) && !it->is_symlink(ignored)) {
      if (depth < kMaxDepth) list_into(out, it->path(), name + "/", depth + 1);
    } else if (it->is_regular_file(ignored)) {
      RemoteFile file;
      file.path = name;
      file.size = it->file_size(ignored);
      out.push_back(std::move(file));
    }
  }
}

Error incomplete(const std::string& where, const std::string& what) {
  return make_error(ErrorCode::not_found, where + ": " + what + " is not in the cache");
}

// The files that model.safetensors.index.json names.
std::set<std::string> named_by_index(const std::string& path) {
  std::set<std::string> names;
  const auto text = map_file(path);
  if (!text) return names;
  const auto json = parse_json(text->text());
  if (!json || !json->is_object()) return names;
  const auto* map = json->as_object().if_contains("weight_map");
  if (map == nullptr || !map->is_object()) return names;
  for (const auto& entry : map->as_object())
    if (entry.value().is_string()) names.emplace(entry.value().as_string());
  return names;
}

}  // namespace

FileLock::~FileLock() {
  if (fd_ >= 0) ::close(fd_);
}

CacheFolder::CacheFolder(std::string root, std::string name)
    : root_(std::move(root)), name_(std::move(name)), path_(root_ + "/" + name_) {}

std::optional<std::string> CacheFolder::ref(const std::string& revision) const {
  if (!is_safe_relative_path(revision)) return {};
  std::ifstream in(path_ + "/refs/" + revision, std::ios::binary);
  std::string text(kMaxRefBytes, '\0');
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<std::size_t>(std::max<std::streamsize>(in.gcount(), 0)));
  while (!text.empty() && (text.back() == '\n' || text.back() == '\r' || text.back() == ' ')) text.pop_back();
  if (!is_safe_relative_path(text) || text.find('/') != std::string::npos) return {};
  return text;
}

Status CacheFolder::set_ref(const std::string& revision, std::string_view snapshot) {
  if (ref(revision) == snapshot) return {};
  const fs::path path = fs::path(path_) / "refs" / revision;
  if (Status made = make_folders(path.parent_path().string()); !made) return made;
  const std::string fresh = (path.parent_path() / temporary_name(path.filename().string())).string();
  const Fd file(::open(fresh.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
  const bool written =
      file.get() >= 0 && ::write(file.get(), snapshot.data(), snapshot.size()) == static_cast<ssize_t>(snapshot.size());
  if (!written || ::fsync(file.get()) != 0 || ::rename(fresh.c_str(), path.c_str()) != 0) {
    const Error error = system_error(path.string(), errno);
    ::unlink(fresh.c_str());
    return error;
  }
  return sync_folder(path.parent_path().string());
}

bool CacheFolder::has_blob(std::string_view id, std::uint64_t size) const {
  struct stat info {};
  return ::stat(blob_path(id).c_str(), &info) == 0 && S_ISREG(info.st_mode) &&
         static_cast<std::uint64_t>(info.st_size) == size;
}

std::vector<RemoteFile> CacheFolder::list(std::string_view snapshot) const {
  std::vector<RemoteFile> files;
  list_into(files, snapshot_path(snapshot), "", 0);
  return files;
}

std::optional<std::vector<RemoteFile>> CacheFolder::recorded_tree(std::string_view snapshot) const {
  const auto text = map_file(path_ + "/trees/" + std::string(snapshot) + ".json");
  if (!text) return {};
  const auto json = parse_json(text->text());
  if (!json || !json->is_object()) return {};
  const auto& root = json->as_object();
  const auto* version = root.if_contains("format_version");
  const auto* files = root.if_contains("files");
  if (version == nullptr || *version != 1 || files == nullptr || !files->is_object()) return {};
  std::vector<RemoteFile> out;
  for (const auto& entry : files->as_object()) {
    if (!entry.value().is_object() || out.size() >= kMaxFiles) return {};
    const auto* size = entry.value().as_object().if_contains("size");
    if (size == nullptr || !size->is_int64() || size->as_int64() < 0) return {};
    RemoteFile file;
    file.path = std::string(entry.key());
    file.size = static_cast<std::uint64_t>(size->as_int64());
    if (is_safe_relative_path(file.path)) out.push_back(std::move(file));
  }
  return out;
}

Status CacheFolder::prepare() {
  for (const std::string& folder :
       {path_ + "/blobs", path_ + "/refs", path_ + "/snapshots", root_ + "/.locks/" + name_})
    if (Status made = make_folders(folder); !made) return made;
  return {};
}

Result<FileLock> CacheFolder::lock(std::string_view id, const std::stop_token& stop,
                                   const std::function<void()>& waiting) {
  const std::string path = root_ + "/.locks/" + name_ + "/" + std::string(id) + ".lock";
  bool said = false;
  std::mutex mutex;
  std::condition_variable_any never;
  for (;;) {
    Fd file(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0664));
    if (file.get() < 0) return system_error(path, errno);
    if (::flock(file.get(), LOCK_EX | LOCK_NB) == 0) {
      // Whoever held it may have removed the file; then the lock is on nothing.
      struct stat mine {};
      struct stat named {};
      if (::fstat(file.get(), &mine) == 0 && ::stat(path.c_str(), &named) == 0 && mine.st_ino == named.st_ino &&
          mine.st_dev == named.st_dev)
        return FileLock(file.release());
    } else if (errno != EWOULDBLOCK && errno != EINTR) {
      return system_error(path, errno);
    } else {
      if (!std::exchange(said, true) && waiting) waiting();
      std::unique_lock guard(mutex);
      never.wait_for(guard, stop, kLockPoll, [] { return false; });
    }
    if (stop.stop_requested()) return make_error(ErrorCode::cancelled, "The download was called off.");
  }
}

Status CacheFolder::link(std::string_view snapshot, const std::string& file, std::string_view id) {
  if (!is_safe_relative_path(file)) return make_error(ErrorCode::invalid_argument, "not a file name: '" + file + "'");
  const std::string base = snapshot_path(snapshot);
  const std::string whole = base + "/" + file;
  if (Status made = make_folders(base); !made) return made;
  Fd folder(::open(base.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (folder.get() < 0) return system_error(base, errno);
  std::string target = "../../blobs/" + std::string(id);
  std::string_view rest = file;
  for (std::size_t slash = rest.find('/'); slash != std::string_view::npos; slash = rest.find('/')) {
    const std::string part(rest.substr(0, slash));
    rest.remove_prefix(slash + 1);
    target.insert(0, "../");
    if (::mkdirat(folder.get(), part.c_str(), 0777) != 0 && errno != EEXIST) return system_error(whole, errno);
    Fd next(::openat(folder.get(), part.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    if (next.get() < 0) return system_error(whole, errno);
    folder = Fd(next.release());
  }
  const std::string name(rest);
  char present[4096];
  const ssize_t length = ::readlinkat(folder.get(), name.c_str(), present, sizeof present);
  if (length > 0 && std::string_view(present, static_cast<std::size_t>(length)) == target) return {};
  const std::string fresh = temporary_name(name);
  if (::symlinkat(target.c_str(), folder.get(), fresh.c_str()) != 0) return system_error(whole, errno);
  if (::renameat(folder.get(), fresh.c_str(), folder.get(), name.c_str()) != 0) {
    const Error error = system_error(whole, errno);
    ::unlinkat(folder.get(), fresh.c_str(), 0);
    return error;
  }
  ::fsync(folder.get());
  return {};
}

Result<Choice> choose_local(const CacheFolder& cache, std::string_view snapshot, const std::string& path,
                            const std::string& where) {
  const std::vector<RemoteFile> here = cache.list(snapshot);
  if (here.empty()) return incomplete(where, "it");
  const auto find = [&](const std::string& name) {
    return std::find_if(here.begin(), here.end(), [&](const RemoteFile& file) { return file.path == name; });
  };
  // What huggingface_hub knows of the whole repository says exactly what is missing.
  if (const auto tree = cache.recorded_tree(snapshot)) {
    auto choice = choose_files(*tree, path, where);
    if (!choice) return choice;
    for (const RemoteFile& file : choice->files) {
      const auto it = find(file.path);
      if (it == here.end() || it->size != file.size) return incomplete(where, "'" + file.path + "'");
    }
    return choice;
  }
  auto choice = choose_files(here, path, where);
  if (!choice) {
    // The faults of a part of the files say nothing about the whole.
    if (choice.error().code != ErrorCode::invalid_argument) return incomplete(where, "all of it");
    return choice;
  }
  const std::string folder = choice->open.empty() ? "" : choice->open + "/";
  bool has_vocabulary = choice->open.ends_with(".gguf");
  for (const RemoteFile& file : choice->files) {
    if (!file.path.ends_with(".safetensors") && !file.path.ends_with(".gguf")) {
      const std::string name = file.path.substr(folder.size());
      has_vocabulary = has_vocabulary || name == "tokenizer.json" || name == "tokenizer.model" ||
                       name == "vocab.json" || name == "vocab.txt" || name.ends_with(".tiktoken");
      if (name != "model.safetensors.index.json") continue;
      for (const std::string& each : named_by_index(cache.snapshot_path(snapshot) + "/" + file.path))
        if (const std::string name_of = folder + each; find(name_of) == here.end())
          return incomplete(where, "'" + name_of + "'");
      continue;
    }
    for (const std::string& part : all_parts(file.path))
      if (find(part) == here.end()) return incomplete(where, "'" + part + "'");
  }
  if (!has_vocabulary) return incomplete(where, "a tokenizer");
  return choice;
}

std::uint64_t free_bytes(const std::string& folder) {
  struct statvfs info {};
  if (::statvfs(folder.c_str(), &info) != 0) return UINT64_MAX;
  return static_cast<std::uint64_t>(info.f_bavail) * info.f_frsize;
}

Error system_error(const std::string& path, int number) {
  return make_error(ErrorCode::unavailable, path + ": " + std::error_code(number, std::system_category()).message());
}

Status sync_folder(const std::string& folder) {
  const Fd fd(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  // Some file systems have no such thing as the sync of a folder.
  if (fd.get() < 0 || (::fsync(fd.get()) != 0 && errno != EINVAL)) return system_error(folder, errno);
  return {};
}

}  // namespace xgen::sources
