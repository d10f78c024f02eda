// Reloader: notices that the configuration should be read again - a signal, an operator, a changed file - and has it
// done on a thread of its own.
#pragma once

#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/result.h"

namespace xgen {

class Reloader {
 public:
  // What was changed, in words, or why nothing was.
  using Reload = std::function<Result<std::string>()>;
  using Done = std::function<void(Result<std::string>)>;

  // `file` is watched through its folder, so that renamed files and swapped symbolic links (Kubernetes' ConfigMaps) are
  // seen; only a changed content counts. `reload` is called from the thread made here.
  Reloader(std::string file, Reload reload);
  ~Reloader();
  Reloader(const Reloader&) = delete;
  Reloader& operator=(const Reloader&) = delete;

  // Thread-safe. `done` may be empty: the outcome is logged in any case.
  void request(Done done);

 private:
  bool watch();
  void run();
  void reload_now(const std::vector<Done>& waiting);
  Result<std::string> content() const;

  const std::string file_;
  const Reload reload_;
  int wake_ = -1;     // eventfd
  int changes_ = -1;  // inotify; -1 where there is none
  std::string seen_;  // content of the last reload; of the thread
  std::mutex mutex_;
  std::vector<Done> waiting_;
  bool requested_ = false;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace xgen
