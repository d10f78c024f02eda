// A cache of downloaded files on disk, in the layout of huggingface_hub: ROOT/NAME/{blobs,refs,snapshots}. Blobs are
// named by their content, snapshots are folders of links to them, refs say which snapshot a revision is. Several
// processes may use it at once.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <stop_token>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "sources/file_choice.h"

namespace xgen::sources {

// Held for as long as one process downloads one blob.
class FileLock {
 public:
  FileLock() = default;
  explicit FileLock(int fd) : fd_(fd) {}
  FileLock(FileLock&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  FileLock& operator=(FileLock&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~FileLock();

 private:
  int fd_ = -1;
};

class CacheFolder {
 public:
  // `name`: one folder's name, "models--org--repo". Nothing is made yet.
  CacheFolder(std::string root, std::string name);

  const std::string& path() const { return path_; }
  std::string blob_path(std::string_view id) const { return path_ + "/blobs/" + std::string(id); }
  std::string snapshot_path(std::string_view snapshot) const { return path_ + "/snapshots/" + std::string(snapshot); }

  // The snapshot that a revision was when it was last looked up.
  std::optional<std::string> ref(const std::string& revision) const;
  Status set_ref(const std::string& revision, std::string_view snapshot);

  // A blob of that size is there.
  bool has_blob(std::string_view id, std::uint64_t size) const;
  // Files of a snapshot that lead to something, with their sizes and without ids; empty if there is no such snapshot.
  std::vector<RemoteFile> list(std::string_view snapshot) const;
  // huggingface_hub's record of what the whole repository holds at a snapshot, if there is one.
  std::optional<std::vector<RemoteFile>> recorded_tree(std::string_view snapshot) const;

  // Makes the folders. Errors: unavailable, naming the folder and the reason.
  Status prepare();
  // Waits for other processes; `waiting` is called once if it has to. Errors: cancelled; unavailable naming the file.
  Result<FileLock> lock(std::string_view id, const std::stop_token& stop, const std::function<void()>& waiting);
  // Makes `file` of the snapshot a link to the blob, at once or not at all. No link on the way is followed.
  Status link(std::string_view snapshot, const std::string& file, std::string_view id);

 private:
  std::string root_;
  std::string name_;
  std::string path_;
};

// What a snapshot would be opened by, if it has all that its model needs: `tree` says what the repository holds, where
// that is known. Errors: not_found naming what is missing; as choose_files.
Result<Choice> choose_local(const CacheFolder& cache, std::string_view snapshot, const std::string& path,
                            const std::string& where);

// Bytes that an unprivileged user may still write on the file system of an existing folder; UINT64_MAX if unknown.
std::uint64_t free_bytes(const std::string& folder);
// The reason of a failed system call: "PATH: no space left on device".
Error system_error(const std::string& path, int number);
// So that a rename in it outlives a loss of power.
Status sync_folder(const std::string& folder);

}  // namespace xgen::sources
