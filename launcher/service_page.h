// launcher/service_page.html, as it is sent: the page for people.
#ifndef HALKA_LAUNCHER_SERVICE_PAGE_H
#define HALKA_LAUNCHER_SERVICE_PAGE_H

extern const char service_page[];

#endif
