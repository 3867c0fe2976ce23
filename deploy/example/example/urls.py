from django.contrib import admin
from django.contrib.staticfiles.views import serve
from django.urls import path, re_path

urlpatterns = [
    path("admin/", admin.site.urls),
    # The admin's styles, although DEBUG is off. Your site serves its static files by a web server or whitenoise.
    re_path(r"^static/(?P<path>.*)$", serve, {"insecure": True}),
]
